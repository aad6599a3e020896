"""The installed ONNX Runtime, and which of its providers really run on this machine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from . import probe
from .load_options import LoadOptions
from .probe import Attempt
from .table import AUTO, PROVIDERS
from .targets import choose_targets


@dataclass(frozen=True)
class Report:
    """The result of an examination.

    Attributes:
        packages: name and version of each installed package that brings ONNX Runtime.
        version: what is really imported.
        build: how that was built, in its own words.
        cuda: the version of CUDA that it was built for; None for a build without.
        clash: what is wrong where there are several packages, and the remedy.
        attempts: what came of trying each provider.
        auto: the provider that "auto" takes, if it has kernels for a bundle's nodes.
    """

    packages: dict[str, str]
    version: str
    build: str
    cuda: str | None
    clash: str | None
    attempts: tuple[Attempt, ...]
    auto: str | None

    def sound(self, provider: str | None = None) -> bool:
        """Whether a provider runs; if None, what the installed package is for: a GPU if it is built for one."""
        if provider in (None, "auto"):
            provider = "cuda" if self.cuda is not None else "cpu"
        runs = {attempt.provider for attempt in self.attempts if attempt.runs}
        return self.clash is None and provider in runs

    def json(self, provider: str | None = None) -> dict[str, Any]:
        fields = dataclasses.asdict(self) | {"sound": self.sound(provider)}
        for entry, attempt in zip(fields["attempts"], self.attempts):
            entry["runs"] = attempt.runs
        return fields


def examine() -> Report:
    """Try every provider."""
    attempts = tuple(probe.attempt(choose_targets(LoadOptions(provider))[0]) for provider in PROVIDERS)
    runs = {attempt.provider for attempt in attempts if attempt.runs}
    return Report(
        packages={name: importlib.metadata.version(name) for name in probe.packages()},
        version=ort.__version__,
        build=ort.get_build_info(),
        cuda=ort.cuda_version or None,
        clash=probe.clash(),
        attempts=attempts,
        auto=next((name for name in AUTO if name in runs), None),
    )
