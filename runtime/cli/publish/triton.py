"""The command `triton`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .. import flags
from ..console import messages


def triton(
    bundle: flags.BundleName,
    repository: Annotated[
        Path,
        typer.Argument(
            parser=flags.parse_path, metavar="REPOSITORY", help="Triton's model repository.", show_default=False
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the model, for clients.", show_default="that of the bundle's folder or repository"
        ),
    ] = None,
    max_rows: Annotated[int, typer.Option(metavar="N", help="Answers that are computed together.")] = 8,
    max_queue: Annotated[int, typer.Option(metavar="N", help="Requests that may wait.")] = 64,
    where: flags.Where,
) -> None:
    """Write a model repository for Triton's Python backend, with the inputs and outputs of its vLLM backend.

    Triton's Python needs onnx-vlm. Triton reads the bundle where it is.
    """
    from ...hub.find import find, name_of
    from ...triton.repository import write

    settings = {
        "provider": where.provider,
        "threads": where.threads,
        "provider_options": dict(where.provider_options),
        "allow_fallback": where.allow_fallback,
        "max_rows": max_rows,
        "max_queue": max_queue,
    }
    folder = write(find(bundle), repository, name or name_of(bundle), settings)
    messages.print(f"wrote [bold]{escape(str(folder))}[/]", soft_wrap=True)
