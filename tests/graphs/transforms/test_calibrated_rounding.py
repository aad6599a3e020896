"""Calibrated rounding: smaller errors of products for inputs like those seen, in the format of plain rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_vlm.graphs.transforms import calibrated_rounding, quantize_blocks
from onnx_vlm.graphs.transforms.calibrated_rounding import Moments
from onnx_vlm.graphs.transforms.weights import Weight

OUTPUTS = 40


def inputs_of(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Rows of inputs that depend on each other, a few of them large."""
    mixing = np.random.default_rng(width).normal(size=(width // 4, width)) * np.geomspace(0.1, 3, width)
    return (random.normal(size=(rows, width // 4)) @ mixing + 0.1 * random.normal(size=(rows, width))).astype("f4")


def rounded(weight: np.ndarray, moments: Moments, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The values and scales that are stored of a weight (in, out)."""
    stored = Weight("weight", weight, ir.DataType.FLOAT)
    values, scales = zip(*calibrated_rounding.pieces(stored, moments, 4, block_size)())
    return np.concatenate(values), np.concatenate(scales)


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("width", [75, 256])
def test_products_of_inputs_like_those_seen_change_less(width: int, block_size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrated_rounding, "SPAN", 128)
    monkeypatch.setattr(calibrated_rounding, "AT_ONCE", 16 * width)
    random = np.random.default_rng(0)
    weight = random.normal(size=(width, OUTPUTS)).astype("f4")
    moments = Moments(width)
    for _ in range(4):
        moments.add(inputs_of(random, 300, width)[None])
    values, scales = rounded(weight, moments, block_size)
    plain, plain_scales = quantize_blocks.quantized(np.ascontiguousarray(weight.T), 4, block_size)
    assert values.shape == plain.shape
    assert values.dtype == plain.dtype
    assert np.array_equal(scales, plain_scales)
    unseen = inputs_of(random, 300, width)
    products = unseen @ weight
    errors = [
        np.linalg.norm(unseen @ quantize_blocks.dequantized(some, scales, 4)[:, :width].T - products)
        for some in (values, plain)
    ]
    assert errors[0] < 0.6 * errors[1], errors


def test_rounding_is_to_the_nearest_where_no_input_tells_of_another():
    weight = np.random.default_rng(1).normal(size=(96, OUTPUTS)).astype("f4")
    weight[32:64, 0] = 0  # a block of zeros has a scale of zero
    moments = Moments(96)
    moments.add(np.eye(96, dtype="f4"))
    for seen in (moments, Moments(96)):
        values, scales = rounded(weight, seen, 32)
        nearest = np.repeat(scales, 32, 1)
        integers = np.divide(weight.T, nearest, out=np.zeros_like(nearest), where=nearest != 0)
        expected = np.clip(np.rint(integers), -8, 7) * nearest
        assert np.allclose(quantize_blocks.dequantized(values, scales, 4), expected, atol=1e-5)
