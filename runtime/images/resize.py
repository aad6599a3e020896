"""Resizing as PyTorch does it to 8-bit pictures, which is what transformers' image processors run on.

Pillow's result is close but not the same: it chooses which direction to resize first, and each rounds to 8 bits on the
way. Here as there the filter is widened when shrinking (no aliasing), its weights are 16-bit integers, rows are resized
before columns, and both results are rounded and clipped to 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
OUTPUTS = 16  #: results computed by one matrix product; their windows of the source overlap


def resize(planes: Sequence[np.ndarray], height: int, width: int, resample: str) -> np.ndarray:
    """The three planes of a picture, (rows, columns) of uint8, at another size, (3, height, width)."""
    if resample not in SUPPORT:
        filter = Image.Resampling[resample.upper()]
        return np.stack([np.asarray(Image.fromarray(plane).resize((width, height), filter)) for plane in planes])
    return np.stack([_along_rows(_along_rows(plane, width, resample).T, height, resample).T for plane in planes])


def _along_rows(plane: np.ndarray, size: int, resample: str) -> np.ndarray:
    """(rows, columns) to (rows, size) of uint8."""
    rows, columns = plane.shape
    if columns == size:
        return plane
    centred = (plane ^ np.uint8(128)).view(np.int8)  # 128 less
    products = _products(columns, size, resample)
    widest = max(len(weights) for _, _, weights, _ in products)
    # One for all products: to get new memory would cost more than they do.
    buffer = np.empty((rows, widest), products[0][2].dtype, "F" if plane.flags.f_contiguous else "C")
    resized = np.empty((rows, size), np.uint8)
    for some, window, weights, rest in products:
        pixels = buffer[:, : len(weights)]
        pixels[:] = centred[:, window]
        sums = pixels @ weights
        if sums.shape[1] > len(rest):
            sums = sums[:, : len(rest)] + sums[:, len(rest) :].astype(np.float64)
        sums += rest
        resized[:, some] = np.clip(sums, 0, 255, out=sums)
    return resized


@lru_cache(maxsize=16)
def _products(source: int, target: int, resample: str) -> list[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """For some results at a time: which, of which source pixels, the weights (pixels, results), and what is to be added
    to pixels less 128 times these.

    A product is exact as long as its sums are whole numbers of 24 bits, in float32, times a power of two. Weights of
    more than 16 bits are cut in two: the columns of the second part follow those of the first. That has 6 bits, so the
    sums of 4096 pixels or more need float64.
    """
    first, weights, precision = _weights(source, target, resample)
    taps = weights.shape[1]
    parts = [weights]
    if precision > 16:
        step = 1 << (precision - 16)
        parts = [step * np.rint(weights / step)]
        parts.append(weights - parts[0])
    dtype = np.float32 if taps < 1 << 12 else np.float64
    rest = ((128 * weights.sum(1) / (1 << precision)) + 0.5).astype(np.float32 if precision <= 16 else np.float64)
    products = []
    for start in range(0, target, OUTPUTS):
        some = slice(start, min(start + OUTPUTS, target))
        count, left = some.stop - start, first[start]
        right = min(first[some][-1] + taps, source)
        block = np.zeros((len(parts), count, right - left + taps))
        for index in range(count):
            offset = first[start + index] - left
            for part, values in zip(block, parts):
                part[index, offset : offset + taps] = values[start + index]
        block = (block.reshape(len(parts) * count, -1).T[: right - left] / (1 << precision)).astype(dtype)
        products.append((some, slice(left, right), np.ascontiguousarray(block), rest[some]))
    return products


def _weights(source: int, target: int, resample: str) -> tuple[np.ndarray, np.ndarray, int]:
    """For each of `target` results the first source pixel (target,), the weights of it and those after it (target,
    taps) as integers, and the number of bits by which they are scaled."""
    scale = source / target
    stretch = max(scale, 1.0)
    support = SUPPORT[resample] * stretch
    centres = scale * (np.arange(target) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), source)
    taps = np.arange((last - first).max())
    distances = (taps + first[:, None] - centres[:, None] + 0.5) / stretch
    weights = np.where(taps < (last - first)[:, None], _filter(distances, resample), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    largest = weights.max()
    precision = next((bits for bits in range(22) if int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15), 22)
    return first, np.trunc(weights * (1 << precision) + np.copysign(0.5, weights)), precision


def _filter(distances: np.ndarray, resample: str) -> np.ndarray:
    """The triangle, or Keys' cubic with a = -1/2 (IEEE Trans. Acoustics, Speech, Signal Processing 29(6), 1981)."""
    x = np.abs(distances)
    if resample == "bilinear":
        return np.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
