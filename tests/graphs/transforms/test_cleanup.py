"""Fewer nodes, the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_vlm.graphs.transforms import cleanup
from small_graphs import graph, run, value


def reshapes(middle: tuple[int, ...], end: tuple[int | str, ...]) -> ir.Model:
    x, between, y, z = value("x", "n", 6), value("between", "n", *middle[1:]), value("y", *end), value("z", *end)
    shapes = {
        name: ir.Value(name=name, const_value=ir.tensor(np.array(shape), name=name))
        for name, shape in {"s1": middle, "s2": [-1 if isinstance(size, str) else size for size in end]}.items()
    }
    nodes = [
        ir.node("Reshape", [x, shapes["s1"]], outputs=[between]),
        ir.node("Reshape", [between, shapes["s2"]], outputs=[y]),
        ir.node("Relu", [y], outputs=[z]),
    ]
    return graph(nodes, [x], [z], **shapes)


def test_reshapes_there_and_back_are_dropped(tmp_path: Path):
    model = reshapes((-1, 2, 3), ("n", 6))
    assert cleanup.drop_reshape_round_trips(model) == 1
    assert [node.op_type for node in model.graph] == ["Relu"]
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    assert (run(model, tmp_path / "model.onnx", x=x) == np.maximum(x, 0)).all()


def test_reshapes_that_end_elsewhere_stay():
    model = reshapes((-1, 2, 3), ("n", 3, 2))
    assert cleanup.drop_reshape_round_trips(model) == 0
    assert [node.op_type for node in model.graph] == ["Reshape", "Reshape", "Relu"]


@pytest.mark.parametrize("kept", [1, 2])
def test_sequences_are_rotated_whole(kept: int, tmp_path: Path):
    """The first tokens, which were cut off and put back, stay as they are."""
    x, head, rest, turned, y = (value(name, "n", 2, 5, 8) for name in ("x", "head", "rest", "turned", "y"))
    head.shape, rest.shape, turned.shape = (ir.Shape(["n", 2, size, 8]) for size in (kept, 5 - kept, 5 - kept))
    arrays = {
        "zero": np.zeros(1, np.int64),
        "kept": np.array([kept]),
        "end": np.array([1 << 40]),
        "axis": np.array([2]),
        "cos": np.random.default_rng(0).normal(size=(5 - kept, 4)).astype(np.float32),
        "sin": np.random.default_rng(1).normal(size=(5 - kept, 4)).astype(np.float32),
    }
    given = {
        name: ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
        for name, array in arrays.items()
    }
    rotation = {"interleaved": 1}
    nodes = [
        ir.node("Slice", [x, given["zero"], given["kept"], given["axis"]], outputs=[head]),
        ir.node("Slice", [x, given["kept"], given["end"], given["axis"]], outputs=[rest]),
        ir.node(
            "RotaryEmbedding",
            [rest, given["zero"], given["cos"], given["sin"]],
            rotation,
            domain="com.microsoft",
            outputs=[turned],
        ),
        ir.node("Concat", [head, turned], {"axis": 2}, outputs=[y]),
    ]
    model = graph(nodes, [x], [y], **given)
    model.graph.opset_imports["com.microsoft"] = 1
    values = np.random.default_rng(2).normal(size=(3, 2, 5, 8)).astype(np.float32)
    before = run(model, tmp_path / "model.onnx", x=values)
    assert cleanup.rotate_whole_sequences(model) == 1
    assert sorted(node.op_type for node in model.graph) == ["Concat", "Concat", "RotaryEmbedding"]
    after = run(model, tmp_path / "whole.onnx", x=values)
    assert np.allclose(before, after, atol=1e-6)
    assert (after[:, :, :kept] == values[:, :, :kept]).all()


def test_metadata_goes(linear: ir.Model):
    linear.metadata_props["made"] = "here"
    for node in linear.graph:
        node.metadata_props["line"] = "/somewhere/model.py:12"
        node.doc_string = "line 12"
    cleanup.drop_metadata(linear)
    assert not linear.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in linear.graph)
