"""The second graph of a decoder in blocks: the same weights as integers of 8 bits, against the stored numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_vlm.graphs import BundleError, expansion
from onnx_vlm.graphs.transforms import expand_blocks, quantize_blocks, weights
from small_graphs import graph, value

COLUMNS = 40


def written(path: Path, rows: int, block_size: int = 128) -> np.ndarray:
    """Write a graph that multiplies by a weight in blocks; the weight (rows, columns) as it is stored."""
    w = np.random.default_rng(rows).standard_t(4, size=(rows, COLUMNS)).astype(np.float32)
    w[:, 3], w[:, 5] = 0, w[:, 5] * 1e-4
    x, weight, y = value("x", "n", rows), value("w", rows, COLUMNS), value("y", "n", COLUMNS)
    model = graph([ir.node("MatMul", [x, weight], outputs=[y])], [x], [y], w=weight)
    weights.attach(model, lambda name: w)
    quantize_blocks.quantize_blocks(model, 4, block_size)
    weights.write(weights.store(model, path))
    packed, scales = quantize_blocks.quantized(w.T, 4, block_size)
    return quantize_blocks.dequantized(packed, scales, 4)[:, :rows].T


def answer(model: Path | bytes, x: np.ndarray, **given: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_external_initializers([*given], [ort.OrtValue.ortvalue_from_numpy(array) for array in given.values()])
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("rows", [40, 131, 256, 1030])
def test_integers_and_scales_are_the_stored_weight(tmp_path: Path, rows: int):
    path = tmp_path / "decoder.onnx"
    stored = written(path, rows)
    assert expand_blocks.write_columns(path)
    data = np.fromfile(tmp_path / "decoder.onnx.data", np.uint8)
    (blocks,) = expansion.load(tmp_path / expansion.TABLE, data.size).weights
    integers = np.empty((rows + rows % 2, COLUMNS), np.int8)
    blocks.expand(data, integers)
    units = blocks.units(data)
    restored = integers[:rows] * units
    assert np.abs(restored - stored).max() <= 1e-6 * np.abs(stored).max()
    x = np.random.default_rng(1).normal(size=(9, rows)).astype(np.float32)
    columns = answer(tmp_path / expansion.GRAPH, x, **{blocks.columns_name: integers[:rows], blocks.scales_name: units})
    expected = x @ stored
    assert 0 < np.linalg.norm(columns - expected) < 0.02 * np.linalg.norm(expected), "it rounds inputs to 8 bits"
    lazy = ir.to_proto(expand_blocks.load_columns(path)).SerializeToString()
    assert np.array_equal(answer(lazy, x), columns)


def test_only_large_blocks_are_expanded(tmp_path: Path):
    written(tmp_path / "decoder.onnx", 256, block_size=32)
    assert not expand_blocks.write_columns(tmp_path / "decoder.onnx")
    assert not (tmp_path / expansion.GRAPH).exists()
    assert not (tmp_path / expansion.TABLE).exists()


def test_multiples_cost_little():
    """Against the scales that each block would have alone."""
    w = np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)
    packed, scales = quantize_blocks.quantized(w, 4, 128)
    ours = np.linalg.norm(quantize_blocks.dequantized(packed, scales, 4) - w)
    packed, scales = quantize_blocks.quantized(w.reshape(-1, 128), 4, 128)  # one block a column
    alone = np.linalg.norm(quantize_blocks.dequantized(packed, scales, 4) - w.reshape(-1, 128))
    assert ours < 1.015 * alone


def test_scales_that_are_no_multiples_are_refused(tmp_path: Path):
    path = tmp_path / "decoder.onnx"
    written(path, 512)
    expand_blocks.write_columns(path)
    data = np.fromfile(tmp_path / "decoder.onnx.data", np.uint8)
    (blocks,) = expansion.load(tmp_path / expansion.TABLE, data.size).weights
    for scale in (0.77, np.nan):
        scales = data[blocks.scales :].view(np.float32)
        scales[1] = scale * np.abs(scales[:4]).max()
        with pytest.raises(BundleError, match="no multiples of one number"):
            blocks.expand(data, np.empty((512, COLUMNS), np.int8))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["weights"][0].update(rows=10**12),
        lambda table: table["weights"][0].update(columns=0),
        lambda table: table["weights"][0].update(values=-1),
        lambda table: table["weights"][0].update(scales=10**9),
        lambda table: table["weights"][0].update(rows="256"),
        lambda table: table["weights"][0].pop("rows"),
        lambda table: table.update(more=1),
    ],
)
def test_a_table_is_checked(tmp_path: Path, change: Callable[[dict], object]):
    table = expansion.Table((expansion.Blocks("w.columns", "w.units", 256, COLUMNS, 0, 5120),))
    damaged = dataclasses.asdict(table)
    change(damaged := json.loads(json.dumps(damaged)))
    path = tmp_path / expansion.TABLE
    table.save(path)
    assert expansion.load(path, 5440) == table
    path.write_text(json.dumps(damaged))
    with pytest.raises(BundleError, match="damaged"):
        expansion.load(path, 5440)
    path.write_text("[" * 100_000)
    with pytest.raises(BundleError, match="cannot be read"):
        expansion.load(path, 5440)
