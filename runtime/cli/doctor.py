"""The command `doctor`."""

from __future__ import annotations

import typer
from rich.console import Console

from . import flags
from .console import messages, print_json


def doctor(provider: flags.Provider = "auto", as_json: flags.AsJson = False) -> None:
    """Try every provider on this machine: which run, why others do not, and what to do.

    Status 1 if --provider does not run. For auto that is cuda if onnxruntime-gpu is installed, else cpu.
    """
    from ..providers.doctor import examine
    from ..providers.load_options import LoadOptions
    from ..providers.targets import choose_targets
    from . import tables

    choose_targets(LoadOptions(provider))
    with messages.status("try providers"):
        report = examine()
    if as_json:
        print_json(report.json(provider))
    else:
        Console(highlight=False).print(tables.report(report))
    if not report.sound(provider):
        raise typer.Exit(1)
