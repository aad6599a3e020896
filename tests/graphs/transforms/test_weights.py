"""Weights: read when they are written, in slices; stored the way they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_vlm.graphs.transforms import weights
from small_graphs import Recorded, run


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


def test_transposed_weights_are_stored_as_they_are_used(linear: ir.Model, tmp_path: Path):
    w = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    weights.attach(linear, lambda name: w)
    assert weights.fold_transposes(linear) == 1
    assert [node.op_type for node in linear.graph] == ["MatMul"]
    x = np.ones((4, 20), np.float32)
    assert np.allclose(run(linear, tmp_path / "linear.onnx", x=x), x @ w.T, atol=1e-5)
