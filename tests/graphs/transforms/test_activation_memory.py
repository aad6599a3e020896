"""The memory that the values of a graph take."""

from __future__ import annotations

import onnx_ir as ir
from onnx_vlm.graphs.transforms import activation_memory
from small_graphs import graph, value


def test_values_that_are_alive_together_are_counted():
    """Of two parallel branches one is there while the other is made; what is used no more is gone."""
    x, y = value("x", "batch", "sequence", 5), value("y", "batch", "sequence", 5)
    wide = [value(f"wide{i}", "batch", "sequence", 80) for i in range(2)]
    joined, pooled = value("joined", "batch", "sequence", 160), value("pooled", "batch", 160)
    nodes = [
        ir.node("Expand", [x], outputs=[wide[0]]),
        ir.node("Expand", [x], outputs=[wide[1]]),
        ir.node("Concat", wide, {"axis": -1}, outputs=[joined]),
        ir.node("ReduceMax", [joined], outputs=[pooled]),
        ir.node("Relu", [x], outputs=[y]),
    ]
    model = graph(nodes, [x], [y, pooled])
    assert activation_memory.most_alive(model, "sequence") == 4 * (80 + 80 + 160)
    assert activation_memory.most_alive(model, "batch") == 4 * (80 + 80 + 160)
    assert activation_memory.most_alive(model, "capacity") == 0
