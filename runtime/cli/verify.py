"""The command `verify`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ...graphs import InputError, manifest
from . import flags
from .console import messages, print_json
from .export import import_export


def verify(
    bundle: flags.Bundle,
    *,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Compare with this source model, run now, instead of the bundle's proof."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="DIR", help="The adapter that was merged, with --checkpoint.")
    ] = None,
    as_json: flags.AsJson = False,
    where: flags.Where,
) -> None:
    """Compare a bundle with its proof: its files, and every stage and token of the source model.

    Status 1 if it fails.
    """
    from ..verify import verify as run
    from . import tables

    if adapter is not None and checkpoint is None:
        raise InputError("--adapter goes with --checkpoint, the source model that it was merged into")
    with messages.status("verify") as status:
        evidence = weights = None
        if checkpoint is not None:
            import_export()
            from ...export.proof.proof import live

            status.update(f"run {escape(checkpoint)}")
            evidence, weights = live(checkpoint, bundle, adapter)
        checks = run(bundle, where, evidence, lambda step: status.update(escape(step)))
    checks += [weights] if weights else []
    proof = manifest.load(bundle).proof
    loss = evidence.loss if evidence else proof and proof.loss
    passed = all(check.passed for check in checks)
    if as_json:
        shown = {"passed": passed, "checks": [check.json() for check in checks]}
        print_json({**shown, "loss": loss and dataclasses.asdict(loss)})
    else:
        Console(highlight=False).print(tables.checks(checks))
        if loss is not None:
            Console(highlight=False).print(f"loss: {loss}", soft_wrap=True)
        messages.print("[bold green]passed[/]" if passed else "[bold red]failed[/]")
    if not passed:
        raise typer.Exit(1)
