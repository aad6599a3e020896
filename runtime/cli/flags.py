"""Flags of the commands that load a bundle, and what they say of where it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..model import VLM

Provider = Annotated[str, typer.Option(help="auto, cpu, cuda or tensorrt; another than auto runs there or fails.")]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option("--provider-option", metavar="NAME=VALUE", help="Such as device_id=1; may be given several times."),
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Let the CPU run what the provider has no kernel for.")
]


def load(
    bundle: Path,
    provider: str,
    threads: int | None,
    provider_option: list[str] | None,
    allow_fallback: bool,
    embedding_folder: Path | None,
) -> VLM:
    """The loaded model; where "auto" passed a GPU over, standard error is told why."""
    from .. import model
    from ..providers.options import parse

    options = parse(provider_option)
    vlm = model.load(bundle, provider, threads, options, allow_fallback, embedding_folder=embedding_folder)
    for reason in vlm.passed_over:
        print(f"on {vlm.provider}, as {reason}", file=sys.stderr)
    return vlm
