"""Where graphs run: a provider and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from ...graphs import InputError, UnknownProviderError
from .cpu_quota import threads_within_quota
from .load_options import LoadOptions
from .options import SESSION, resolve, takes
from .table import AUTO, PROVIDERS, Provider


@dataclass(frozen=True)
class Target:
    """A provider and its resolved options.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt".
        resolved: as `options.resolve` returns it.
        allow_fallback: whether nodes of the hot path may be on the CPU though the provider is another.
    """

    provider: str
    resolved: Mapping[str, Mapping[str, Any]]
    allow_fallback: bool = False

    @property
    def row(self) -> Provider:
        """The provider's row of the table."""
        return PROVIDERS[self.provider]

    @property
    def session(self) -> Mapping[str, Any]:
        """Attributes of the session's options."""
        return self.resolved[SESSION]

    @property
    def device(self) -> str:
        """Where tensors are, as ONNX Runtime calls it."""
        return self.row.device

    @property
    def device_id(self) -> int:
        return int(self.resolved[self.row.ort_name].get("device_id", 0))

    @property
    def arithmetic(self) -> str:
        """What the rounding of results depends on: the provider, and those of its options that change it."""
        tf32 = self.resolved[PROVIDERS["cuda"].ort_name].get("use_tf32") == "1"
        fallback = self.allow_fallback and not self.row.on_host
        return " ".join([self.provider, *["with tf32"] * tf32, *["with nodes on the CPU"] * fallback])

    @property
    def captures(self) -> bool:
        """Whether decoding steps are to be replayed as one CUDA graph."""
        return self.resolved[PROVIDERS["cuda"].ort_name].get("enable_cuda_graph") == "1"

    def entries(self, captures: bool = False) -> list[tuple[str, dict[str, str]]]:
        """The providers of a session, with their options, as ONNX Runtime takes them.

        Args:
            captures: whether every run of the session is to be captured as a CUDA graph.
        """
        names = [PROVIDERS[name].ort_name for name in (self.provider, *self.row.leaves_to)]
        entries = [(name, dict(self.resolved[name])) for name in names]
        for _, options in entries:
            if not captures:
                options.pop("enable_cuda_graph", None)
        return entries


def choose_targets(load: LoadOptions) -> list[Target]:
    """The requested target; for "auto" those to try, the best first.

    Raises:
        UnknownProviderError: for an unknown provider.
        InputError: for an unknown provider option or an invalid value.
    """
    provider, threads, options = load.provider, load.threads, dict(load.provider_options)
    if provider != "auto" and provider not in PROVIDERS:
        raise UnknownProviderError(f"provider {provider!r} is not supported; supported: auto, {', '.join(PROVIDERS)}")
    if threads is not None and options.setdefault("threads", threads) != threads:
        raise InputError(f"threads is {threads}, the provider option threads {options['threads']}; give one of them")
    if "threads" not in options and (threads := threads_within_quota()) is not None:
        options["threads"] = threads
    names: Sequence[str] = (provider,)
    if provider == "auto":
        built = set(ort.get_available_providers())
        usable = [name for name in AUTO if PROVIDERS[name].ort_name in built]
        names = [name for name in usable if takes(name, options)] or ["cpu"]
    return [Target(name, resolve(name, options), load.allow_fallback) for name in names]
