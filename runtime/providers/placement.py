"""Which nodes of a graph run where, and whether every node that matters is on the provider that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnxruntime as ort

from ...graphs import ProviderError
from .table import PROVIDERS
from .targets import Target

#: Operators that compute shapes, lengths and indices. The CUDA provider has kernels of them all for all numbers that a
#: model computes with, so one of these that is on the CPU was put there by ONNX Runtime on purpose: it works on a few
#: integers that the host needs. Any other operator on the CPU is part of the hot path.
SHAPE_OPERATORS = {
    *("Shape", "Size", "Range", "ConstantOfShape", "Identity", "Cast"),
    *("Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Expand"),
    *("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "ReduceProd"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Where"),
}

#: For each provider that has nodes of a graph, the number of nodes of each operator.
Placement = Mapping[str, Mapping[str, int]]


def placement(session: ort.InferenceSession) -> Placement:
    """Which nodes of a graph are where, by the session's own record."""
    names = {row.ort_name: row.name for row in PROVIDERS.values()}
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
    if target.row.on_host or target.allow_fallback:
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
