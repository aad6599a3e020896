"""How a bundle is to be loaded: the one set of options that every command and function passes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LoadOptions:
    """Where the graphs of a bundle are to run.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt", which runs there or is an error; or "auto", the best that runs.
        threads: threads for one operator on the CPU; ONNX Runtime decides if None.
        provider_options: options of the provider by name; `providers.options.OPTIONS` lists them.
        allow_fallback: let nodes run on the CPU that the provider has no kernel for.
    """

    provider: str = "auto"
    threads: int | None = None
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    allow_fallback: bool = False
