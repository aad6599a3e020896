"""Work that `torch.onnx.export` repeats, done once: half the time of exporting a small model.

It decomposes a program by tracing all of it a second time, for the sake of a few operators that it does not translate;
here those are replaced in the graph. It promotes types by running all of it once more, also where no types are mixed.
And it parses its library of translations anew for each graph.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from .patching import PARSED_FUNCTION, TYPE_PROMOTION, changed, replaced

aten = torch.ops.aten
#: Operators that are not translated, and the translated ones that compute the same.
SAME = {
    aten.item.default: aten._local_scalar_dense.default,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
}
CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout)
ALL = sys.maxsize  #: the end of a slice that has no end

_decompose = ExportedProgram.run_decompositions


@contextmanager
def fast_export() -> Iterator[None]:
    """Run `torch.onnx.export` in this context to save that work.

    It raises an OnnxExporterError if an operator has to be decomposed.
    """
    with (
        replaced(ExportedProgram, run_decompositions=_decomposed),
        changed(TYPE_PROMOTION, lambda promote: functools.partial(_promoted, promote)),
        changed(PARSED_FUNCTION, _parsed_once),
    ):
        yield


@functools.cache
def _parsed_once(parsed: property) -> property:
    return property(functools.cache(parsed.fget))


def _decomposed(program: ExportedProgram, table: dict[Any, Callable]) -> ExportedProgram:
    _replace(program)
    left = [node.target for node in program.graph.nodes if node.op == "call_function"]
    again = any(target in table or getattr(getattr(target, "_schema", None), "is_mutable", False) for target in left)
    return _decompose(program, table) if again else program


def _promoted(promote: Callable[[GraphModule], None], module: GraphModule) -> None:
    if any(_mixes_types(node) for part in module.modules() for node in part.graph.nodes):
        promote(module)


def _mixes_types(node: Node) -> bool:
    """Whether an operator takes tensors of another type than it returns."""
    values = [source.meta.get("val") for source in (node, *node.all_input_nodes)]
    types = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    return getattr(node.target, "namespace", "") == "aten" and len(types) > 1


def _replace(program: ExportedProgram) -> None:
    graph = program.graph_module.graph
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.target in SAME:
            node.target = SAME[node.target]
        elif _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
        elif node.target in CASTS:
            node.target, node.args = aten._to_copy.default, node.args[:1]
            node.kwargs = {"dtype": node.meta["val"].dtype}
        elif node.target == aten.conv2d.padding and node.args[4:5] in ((), ("valid",)) and not node.kwargs:
            rest = zip(("padding", "dilation", "groups"), ([0, 0], *node.args[5:]))
            node.target, node.args, node.kwargs = aten.conv2d.default, node.args[:4], dict(rest)
        elif node.target == aten.adaptive_avg_pool2d.default:
            _pool(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _changes_nothing(node: Node) -> bool:
    if node.target in CASTS:
        return node.args[0].meta["val"].dtype == node.meta["val"].dtype
    if node.target == aten.slice.Tensor:
        return (node.args[2:] or (0,)) in ((0,), (0, ALL)) and not node.kwargs
    return node.target == aten.dropout.default and not node.args[2]


def _pool(node: Node) -> None:
    sizes = node.args[0].meta["val"].shape[2:]
    pooled = node.args[1]
    if all(isinstance(before, int) and before % after == 0 for before, after in zip(sizes, pooled)):
        node.target = aten.avg_pool2d.default
        node.args = (node.args[0], [before // after for before, after in zip(sizes, pooled)])
