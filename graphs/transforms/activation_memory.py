"""How much memory the values of a graph take, by the shapes and the order of its nodes."""

from __future__ import annotations

import math

import onnx_ir as ir


def most_alive(model: ir.Model, axis: str) -> int:
    """The most bytes of a graph's values that are there at the same time, for one of the symbolic size `axis`.

    Other symbolic sizes count as one. Inputs are not counted, nor are values without the axis, what operators hold
    inside, and values whose shape is not known.
    """
    last = {value: place for place, node in enumerate(model.graph) for value in node.inputs}
    ending: dict[int, int] = {}
    alive = most = 0
    for place, node in enumerate(model.graph):
        for value in node.outputs:
            size = _bytes(value, axis)
            alive += size
            end = last.get(value, place)
            ending[end] = ending.get(end, 0) + size
        most = max(most, alive)
        alive -= ending.pop(place, 0)
    return most


def _bytes(value: ir.Value, axis: str) -> int:
    if value.shape is None or value.dtype is None or axis not in map(str, value.shape):
        return 0
    return math.ceil(math.prod(size for size in value.shape if isinstance(size, int)) * value.dtype.itemsize)
