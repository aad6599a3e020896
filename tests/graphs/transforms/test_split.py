"""A graph in parts does what it does whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_vlm.graphs.transforms import split, weights
from small_graphs import graph, value


def test_a_graph_in_parts_does_what_it_does_whole(tmp_path: Path):
    """A product, its square root taken where it is needed, and a value that skips a part."""
    random = np.random.default_rng(0)
    x, a, b, c, y, z, out = (value(name, "n", 20) for name in ("x", "a", "b", "c", "y", "z", "out"))
    first, second, stored, wide = (value(name, 20, 20) for name in ("first", "second", "stored", "wide"))
    nodes = [
        ir.node("Abs", [stored], outputs=[wide]),
        ir.node("MatMul", [x, first], outputs=[a]),
        ir.node("Relu", [a], outputs=[b]),
        ir.node("MatMul", [b, second], outputs=[c]),
        ir.node("Add", [c, a], outputs=[y]),
        ir.node("MatMul", [y, wide], outputs=[z]),
        ir.node("Add", [z, b], outputs=[out]),
    ]
    model = graph(nodes, [x], [c, out], first=first, second=second, stored=stored)
    arrays = {name: random.normal(size=(20, 20)).astype(np.float32) for name in ("first", "second", "stored")}
    weights.attach(model, arrays.__getitem__)
    parts = list(split.split(model, 1600))
    assert [[one.name for one in (*part.graph.inputs, *part.graph.outputs)] for part in parts] == [
        ["x", "a", "b"],
        ["b", "a", "c", "y"],
        ["y", "b", "out"],
    ]
    assert [len(part.graph.initializers) for part in parts] == [1, 1, 1]
    assert len(list(split.split(model, 3200))) == 2
    assert len(list(split.split(model, 1))) == 3, "a weight stays whole"
    values = {"x": random.normal(size=(3, 20)).astype(np.float32)}
    weights.write(weights.store(model, tmp_path / "whole.onnx"))
    whole = ort.InferenceSession(tmp_path / "whole.onnx", providers=["CPUExecutionProvider"]).run(None, dict(values))
    for index, part in enumerate(parts):
        weights.write(weights.store(part, tmp_path / f"{index}.onnx"))
        session = ort.InferenceSession(tmp_path / f"{index}.onnx", providers=["CPUExecutionProvider"])
        given = session.run(None, {one.name: values[one.name] for one in part.graph.inputs})
        values |= dict(zip([one.name for one in part.graph.outputs], given))
    assert np.allclose(values["c"], whole[0])
    assert np.allclose(values["out"], whole[1])
