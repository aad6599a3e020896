"""Matrix products of 8-bit integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_vlm.graphs.transforms import quantize_columns, weights
from onnx_vlm.runtime.providers.ort_session import session_options
from small_graphs import graph, value


def session_of(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])


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
