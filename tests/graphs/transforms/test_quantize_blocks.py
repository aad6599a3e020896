"""Weights in blocks, against the documented formula and ONNX Runtime's operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_vlm.graphs.transforms import quantize_blocks, weights
from small_graphs import Recorded, graph, run, value


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
