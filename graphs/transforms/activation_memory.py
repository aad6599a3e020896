"""How much memory the values of a graph take, by the shapes and the order of its nodes."""

from __future__ import annotations

import math

import onnx_ir as ir


def most_alive(model: ir.Model, axis: str) -> int:
    """The most bytes of a graph's values that are alive at the same time, for each unit of the symbolic size `axis`.

    Other symbolic sizes count as 1. Not counted are inputs, values without the axis, values of unknown shape, and the
    memory that operators use inside.
    """
    last_use = {value: index for index, node in enumerate(model.graph) for value in node.inputs}
    ending: dict[int, int] = {}
    alive = most = 0
    for index, node in enumerate(model.graph):
        for value in node.outputs:
            size = _bytes(value, axis)
            alive += size
            end = last_use.get(value, index)
            ending[end] = ending.get(end, 0) + size
        most = max(most, alive)
        alive -= ending.pop(index, 0)
    return most


def _bytes(value: ir.Value, axis: str) -> int:
    if value.shape is None or value.dtype is None or axis not in map(str, value.shape):
        return 0
    return math.ceil(math.prod(size for size in value.shape if isinstance(size, int)) * value.dtype.itemsize)
