"""The contract between graphs and runtime, and each graph transform by what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_vlm.graphs.transforms import activation_memory, cleanup, quantize_blocks, quantize_columns, split, weights
from onnx_vlm.runtime.providers.ort_session import session_options


def graph(nodes: list[ir.Node], inputs: list[ir.Value], outputs: list[ir.Value], **initializers: ir.Value) -> ir.Model:
    return ir.Model(
        ir.Graph(inputs, outputs, nodes=nodes, initializers=list(initializers.values()), opset_imports={"": 23}),
        ir_version=10,
    )


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def run(model: ir.Model, path: Path, **inputs: np.ndarray) -> np.ndarray:
    weights.write(weights.store(model, path))
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def session_of(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])


@pytest.fixture
def linear() -> ir.Model:
    """x @ transpose(w), the weight not yet there."""
    x, w, y = value("x", "n", 20), value("w", 30, 20), value("y", "n", 30)
    transpose = ir.node("Transpose", [w], {"perm": [1, 0]})
    transpose.outputs[0].name = "wt"
    return graph([transpose, ir.node("MatMul", [x, transpose.outputs[0]], outputs=[y])], [x], [y], w=w)


class Recorded:
    """An array that notes how many of its rows were read at a time."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, index: Any) -> np.ndarray:
        self.read.append(len(self.array[index]))
        return self.array[index]


def test_weights_are_read_when_they_are_written_and_in_slices(
    linear: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weights, "AT_ONCE", 140)
    source = Recorded(np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32))
    weights.attach(linear, lambda name: source)
    assert source.read == []
    told: list[int] = []
    weights.write(weights.store(linear, tmp_path / "linear.onnx"), told.append)
    assert sorted(source.read) == [2, 7, 7, 7, 7]
    assert told == [2400]
    assert (np.fromfile(tmp_path / "linear.onnx.data", np.float32).reshape(30, 20) == source.array).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_quantised_in_slices(linear: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int):
    source = Recorded(np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32))
    weights.attach(linear, lambda name: source)
    weights.fold_transposes(linear)
    quantize_blocks.quantize_blocks(linear, bits, 32)
    monkeypatch.setattr(weights, "KEPT_IN_GRAPH", 0)
    monkeypatch.setattr(weights, "AT_ONCE", 140)
    path = tmp_path / "linear.onnx"
    weights.write(weights.store(linear, path))
    assert sorted(source.read) == [2, 7, 7, 7, 7], "values and scales from one reading"
    stored = {value.name: value.const_value.numpy() for value in ir.load(path).graph.initializers.values()}
    packed, scales = quantize_blocks.quantized(source.array, bits, 32)
    assert (stored[f"w.T.q{bits}"] == packed).all()
    assert (stored["w.T.scales"] == scales).all()


def test_transposed_weights_are_stored_as_they_are_used(linear: ir.Model, tmp_path: Path):
    w = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    weights.attach(linear, lambda name: w)
    assert weights.fold_transposes(linear) == 1
    assert [node.op_type for node in linear.graph] == ["MatMul"]
    x = np.ones((4, 20), np.float32)
    assert np.allclose(run(linear, tmp_path / "linear.onnx", x=x), x @ w.T, atol=1e-5)


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
        "zero": np.zeros(1, np.int64), "kept": np.array([kept]), "end": np.array([1 << 40]), "axis": np.array([2]),
        "cos": np.random.default_rng(0).normal(size=(5 - kept, 4)).astype(np.float32),
        "sin": np.random.default_rng(1).normal(size=(5 - kept, 4)).astype(np.float32),
    }  # fmt: skip
    given = {
        name: ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
        for name, array in arrays.items()
    }
    rotation = {"interleaved": 1}
    nodes = [
        ir.node("Slice", [x, given["zero"], given["kept"], given["axis"]], outputs=[head]),
        ir.node("Slice", [x, given["kept"], given["end"], given["axis"]], outputs=[rest]),
        ir.node("RotaryEmbedding", [rest, given["zero"], given["cos"], given["sin"]], rotation,
                domain="com.microsoft", outputs=[turned]),
        ir.node("Concat", [head, turned], {"axis": 2}, outputs=[y]),
    ]  # fmt: skip
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


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "block_size"), [(128, 32), (67, 32), (256, 128), (8, 64)])
def test_blocks_are_what_the_operator_computes_with(bits: int, rows: int, block_size: int, tmp_path: Path):
    """The stored values by the documented formula, against the operator; rows that fill no block included."""
    random = np.random.default_rng(rows)
    w = random.normal(size=(rows, 48)).astype(np.float32)
    x, weight, y = value("x", "n", rows), value("w", rows, 48), value("y", "n", 48)
    model = graph([ir.node("MatMul", [x, weight], outputs=[y])], [x], [y], w=weight)
    weights.attach(model, lambda name: w)
    assert quantize_blocks.quantize_blocks(model, bits, block_size) == 1
    given = random.normal(size=(5, rows)).astype(np.float32)
    packed, scales = quantize_blocks.quantized(w.T, bits, block_size)
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
    restored = ((values.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]).reshape(48, -1)[:, :rows]
    assert np.abs(restored - w.T).max() < np.abs(w).max() / (1 << (bits - 2))
    result = run(model, tmp_path / "model.onnx", x=given)
    assert np.abs(result - given @ restored.T).max() < 0.02 * np.abs(result).max(), "it rounds inputs to 8 bits"
    assert "w" not in model.graph.initializers


def test_rounding_beats_the_plain_one():
    """Plain: the largest weight at the end of the range."""
    w = np.random.default_rng(0).standard_t(4, size=(64, 512)).astype(np.float32)
    packed, scales = quantize_blocks.quantized(w, 4, 32)
    values = np.stack([packed & 15, packed >> 4], -1).reshape(64, 16, 32).astype(np.float32) - 8
    ours = np.square(values * scales[..., None] - w.reshape(64, 16, 32)).sum()
    plain = np.abs(w.reshape(64, 16, 32)).max(-1, keepdims=True) / 7
    theirs = np.square(np.rint(w.reshape(64, 16, 32) / plain) * plain - w.reshape(64, 16, 32)).sum()
    assert ours < 0.85 * theirs


def test_zeros_single_weights_and_next_to_nothing_are_exact():
    for bits in (4, 8):
        w = np.zeros((4, 64), np.float32)
        w[1, 5], w[2, 40], w[3, 7] = 1.5, -2.5, 1e-40
        packed, scales = quantize_blocks.quantized(w, bits, 32)
        values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(4, 2, 32)
        restored = (values.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]
        assert np.allclose(restored.reshape(4, 64), w, atol=1e-6)


def test_products_of_integers_are_what_their_numbers_give(tmp_path: Path):
    """Two products of one input quantise it once; a row depends on no other, and a row of zeros stays one."""
    random = np.random.default_rng(0)
    x, a, b, y, z = (
        value("x", "n", 67),
        value("a", 67, 48),
        value("b", 67, 40),
        value("y", "n", 48),
        value("z", "n", 40),
    )
    nodes = [ir.node("MatMul", [x, a], outputs=[y]), ir.node("MatMul", [x, b], outputs=[z])]
    model = graph(nodes, [x], [y, z], a=a, b=b)
    arrays = {
        "a": random.normal(size=(67, 48)).astype(np.float32),
        "b": random.normal(size=(67, 40)).astype(np.float32),
    }
    arrays["a"][:, 3] = 0
    weights.attach(model, arrays.__getitem__)
    assert quantize_columns.quantize_columns(model) == 2
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1
    assert all(one.dtype is not None and one.shape is not None for node in model.graph for one in node.outputs)
    given = (random.standard_t(3, size=(5, 67)) * 10 ** np.arange(5)[:, None]).astype(np.float32)
    given[2] = 0
    weights.write(weights.store(model, tmp_path / "model.onnx"))
    session = session_of(tmp_path / "model.onnx")
    ours = session.run(None, {"x": given})
    largest = np.maximum(np.abs(given).max(-1, keepdims=True), 1e-38)
    numbers = np.rint(given / largest * np.float32(127))
    for result, w in zip(ours, arrays.values()):
        values, scales = quantize_columns.quantized(w.T)
        assert np.abs(values * scales - w).max() <= scales.max() / 2 * 1.001
        assert np.allclose(result, numbers @ values * scales * largest / 127, rtol=1e-5, atol=1e-6)
        assert (result[2] == 0).all()
    for row in range(5):
        alone = session.run(None, {"x": given[row : row + 1]})
        assert all((one == some[row]).all() for one, some in zip(alone, ours))


def test_products_of_integers_do_not_overflow(tmp_path: Path):
    """All numbers as large as they can be: sums of two products are beyond 16 bits."""
    x, w, y = value("x", "n", 64), value("w", 64, 16), value("y", "n", 16)
    model = graph([ir.node("MatMul", [x, w], outputs=[y])], [x], [y], w=w)
    weights.attach(model, lambda name: np.full((64, 16), 2.0, np.float32))
    quantize_columns.quantize_columns(model)
    weights.write(weights.store(model, tmp_path / "model.onnx"))
    (result,) = session_of(tmp_path / "model.onnx").run(None, {"x": np.full((3, 64), 5.0, np.float32)})
    assert np.allclose(result, 640)


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
        ["x", "a", "b"], ["b", "a", "c", "y"], ["y", "b", "out"]
    ]  # fmt: skip
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
