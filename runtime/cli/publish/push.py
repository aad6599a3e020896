"""The command `push`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from .. import flags
from ..console import messages


def push(
    bundle: flags.Bundle,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where to upload it.", show_default=False)],
    *,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="Of the model that the bundle was made from, such as apache-2.0.",
            show_default="what the Hub knows",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="The model that the bundle was made from.",
            show_default="what the bundle says",
        ),
    ] = None,
) -> None:
    """Upload a bundle to the Hub, with a model card. Needs the extra `hub`, and `hf auth login` or HF_TOKEN."""
    from ...hub.push import push as upload

    url = upload(bundle, repository, private=private, licence=licence, base_model=base_model)
    messages.print(f"uploaded [bold]{escape(url)}[/]", soft_wrap=True)
