"""Where graphs run: which provider with which options, and whether every node that matters really landed there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from ...graphs import InputError, ProviderError
from . import options as provider_options
from .options import PROVIDERS, SESSION

#: Each provider, and those that take what it leaves, in order.
CHAINS = {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}
#: What "auto" tries, the best first. TensorRT builds engines for minutes, so it is only used when it is asked for.
AUTO = ("cuda", "cpu")
#: Operators that compute shapes, lengths and places. The CUDA provider has kernels of them all for all numbers that a
#: model computes with, so one of these that is on the CPU was put there by ONNX Runtime on purpose: it works on a few
#: integers that the host needs. Any other operator on the CPU is part of the hot path.
SHAPE_OPERATORS = {
    "Shape", "Size", "Gather", "Concat", "Squeeze", "Unsqueeze", "Slice", "Reshape", "Expand", "Range", "Identity",
    "ConstantOfShape", "Cast", "Where", "Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Equal", "Less", "LessOrEqual",
    "Greater", "GreaterOrEqual", "Not", "And", "Or", "ReduceProd",
}  # fmt: skip

#: of each provider that has nodes of a graph, how many of each operator
Placement = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Target:
    """A provider and its settled options.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt".
        settled: as `provider_options.settle` gives it.
        allow_fallback: whether nodes of the hot path may be on the CPU though the provider is another.
    """

    provider: str
    settled: Mapping[str, Mapping[str, Any]]
    allow_fallback: bool = False

    @property
    def session(self) -> Mapping[str, Any]:
        """Attributes of the session's options."""
        return self.settled[SESSION]

    @property
    def device(self) -> str:
        """Where tensors lie, as ONNX Runtime calls it."""
        return "cpu" if self.provider == "cpu" else "cuda"

    @property
    def device_id(self) -> int:
        return int(self.settled[PROVIDERS[self.provider]].get("device_id", 0))

    @property
    def captures(self) -> bool:
        """Whether decoding steps are to be replayed as one CUDA graph."""
        return self.settled[PROVIDERS["cuda"]].get("enable_cuda_graph") == "1"

    def entries(self, captures: bool = False) -> list[tuple[str, dict[str, str]]]:
        """What a session is given as its providers. Only a session whose steps are captured may be told to `captures`:
        all its runs would be."""
        entries = [(PROVIDERS[one], dict(self.settled[PROVIDERS[one]])) for one in CHAINS[self.provider]]
        for _, options in entries:
            if not captures:
                options.pop("enable_cuda_graph", None)
        return entries


def targets(
    provider: str = "auto",
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    allow_fallback: bool = False,
) -> list[Target]:
    """The target that is asked for; with "auto" those to try, the best first.

    Raises:
        ProviderError: for a provider that there is not.
        InputError: for an option that the provider has not, or a value that cannot be.
    """
    if provider != "auto" and provider not in PROVIDERS:
        raise ProviderError(f"provider {provider!r} is not supported; supported: auto, {', '.join(PROVIDERS)}")
    options = dict(options or {})
    if threads is not None and options.setdefault("threads", threads) != threads:
        raise InputError(f"threads is {threads}, the provider option threads {options['threads']}; give one of them")
    chosen: Sequence[str] = (provider,)
    if provider == "auto":
        built = set(ort.get_available_providers())
        chosen = [one for one in AUTO if PROVIDERS[one] in built and provider_options.takes(one, options)] or ("cpu",)
    return [Target(one, provider_options.settle(one, options), allow_fallback) for one in chosen]


def placement(session: ort.InferenceSession) -> Placement:
    """Which nodes of a graph are where, by the session's own record."""
    names = {name: provider for provider, name in PROVIDERS.items()}
    placed: dict[str, Counter[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        provider = names.get(subgraph.ep_name, subgraph.ep_name)
        placed.setdefault(provider, Counter()).update(node.op_type for node in subgraph.get_nodes())
    return placed


def check_placement(name: str, placed: Placement, target: Target) -> None:
    """Hold the nodes of a graph to the target.

    Raises:
        ProviderError: if nodes of the hot path are on the CPU, or none on the provider.
    """
    if target.provider == "cpu" or target.allow_fallback:
        return
    hot = {operator: count for operator, count in placed.get("cpu", {}).items() if operator not in SHAPE_OPERATORS}
    advice = "export with --precision fp16, choose provider='cpu', or accept it with allow_fallback (--allow-fallback)"
    if hot:
        listed = ", ".join(f"{count} {operator}" for operator, count in sorted(hot.items()))
        raise ProviderError(
            f"{name}: {target.provider} has no kernel for {listed}, which would run on the CPU; {advice}"
        )
    if target.provider not in placed:
        raise ProviderError(f"{name}: {target.provider} takes none of its nodes, {_counts(placed)}; {advice}")


def _counts(placed: Placement) -> str:
    return ", ".join(f"{sum(operators.values())} are on {provider}" for provider, operators in placed.items())
