"""The command `bench`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from . import flags
from .console import messages, print_json


def bench(
    bundle: flags.Bundle,
    *,
    image: Annotated[
        Path | None,
        typer.Option(
            parser=flags.parse_path, metavar="PATH", help="An image.", show_default="a made one of 640 x 480 pixels"
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="How many tokens to decode.")] = 32,
    repeats: Annotated[int, typer.Option(metavar="N", help="How often; the first is not counted.")] = 3,
    as_json: flags.AsJson = False,
    where: flags.Where,
) -> None:
    """Measure a bundle on this machine: load, preprocess, vision, prefill, decode, memory."""
    from ..bench import measure
    from . import tables

    with messages.status("load") as status:
        figures = measure(bundle, image, where, new_tokens, repeats, lambda step: status.update(escape(step)))
    if as_json:
        print_json({**dataclasses.asdict(figures), "limit_share": figures.limit_share})
    else:
        Console(highlight=False).print(tables.figures(figures))
