"""Resizing: integer arithmetic on images of every shape, within a bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.images.resize import KEPT_SIDE, SEGMENT, _blocks, _kept_blocks, resize

MIB = 1 << 20


def integer_weights(source: int, target: int) -> tuple[np.ndarray, int]:
    """Weights of the bicubic filter, dense (target, source), and the bits by which they are scaled."""
    scale = source / target
    centres = (np.arange(target)[:, None] + 0.5) * scale
    x = np.abs(np.arange(source) + 0.5 - centres) / max(scale, 1)
    weights = np.select([x < 1, x < 2], [(1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2])
    weights /= weights.sum(1, keepdims=True)
    bits = next((bits for bits in range(22) if weights.max() * 2 ** (bits + 1) + 0.5 >= 1 << 15), 22)
    return np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int64), bits


@pytest.mark.parametrize("columns", [7, 300, 4_000, 20_000, 150_000])
def test_a_row_is_resized_with_integers(columns: int):
    """With weights of 16 bits, longer ones, sums that need float64, and windows in several segments."""
    planes = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (3, 2, columns))
    weights, bits = integer_weights(columns, 14)
    expected = (planes @ weights.T + (1 << bits - 1) >> bits).clip(0, 255)
    assert (resize(planes, 2, 14, "bicubic") == expected).all()


def test_columns_are_resized_as_rows_are():
    planes = np.random.default_rng(1).integers(0, 256, (3, 1, 30_000), np.uint8)
    wide, tall = resize(planes, 1, 30, "bicubic"), resize(planes.transpose(0, 2, 1), 30, 1, "bicubic")
    assert (wide == tall.transpose(0, 2, 1)).all()


@pytest.mark.parametrize("columns", [300, 4_000, 250_000])
def test_every_sum_of_a_product_is_exact(columns: int):
    for _, segments in _blocks(columns, 60, "bicubic", min(columns, SEGMENT)):
        for segment in segments:
            parts = np.split(segment.weights, segment.weights.shape[1] // len(segment.offset), axis=1)
            for part in parts:
                integers = np.abs(part * 2.0**22).astype(np.int64)
                largest = 128 * integers.sum(0).max() // max(np.gcd.reduce(integers, axis=None), 1)
                assert largest <= 2 ** (np.finfo(part.dtype).nmant + 1)


@pytest.mark.parametrize(("rows", "columns", "size"), [(1, 1_000_000, 14), (1, 1_000_000, 224), (140_000, 1, 224)])
def test_memory_does_not_grow_with_one_side(rows: int, columns: int, size: int):
    planes = np.full((3, rows, columns), 200, np.uint8)
    tracemalloc.start()
    try:
        resized = resize(planes, size, size, "bicubic")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.abs(resized.astype(int) - 200).max() <= 1
    assert peak < 80 * MIB


@pytest.mark.parametrize("target", [14, 224, 448 * 36])
@pytest.mark.parametrize("source", [14, KEPT_SIDE])
def test_weights_that_are_kept_are_few(source: int, target: int):
    blocks = _kept_blocks.__wrapped__(source, target, "bicubic")
    assert sum(segment.weights.nbytes for _, segments in blocks for segment in segments) < 6 * MIB


@pytest.mark.parametrize(
    ("shape", "resample"), [((400_000, 1), "bicubic"), ((1, 9_000_000), "bilinear"), ((1, 2_000_000), "nearest")]
)
def test_sides_that_cannot_be_resized_are_named(shape: tuple[int, int], resample: str):
    with pytest.raises(InputError, match=f"{shape[1]} x {shape[0]} pixels cannot be resized to 224 x 224"):
        resize(np.zeros((3, *shape), np.uint8), 224, 224, resample)
