"""The command `inspect`."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from . import flags
from .console import print_json


def inspect(bundle: flags.Bundle, *, as_json: flags.AsJson = False) -> None:
    """Show a bundle's origin, sizes, precision, inputs and outputs, and how it treats prompts and images."""
    from ...graphs import manifest
    from . import tables

    contents = manifest.load(bundle)
    if as_json:
        print_json(dataclasses.asdict(contents))
    else:
        Console(highlight=False, markup=False).print(tables.describe(contents))
