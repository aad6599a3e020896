"""Resizing as PyTorch does it to 8-bit images, which is what transformers' image processors run on.

Pillow's result is close but not the same: it chooses which direction to resize first, and each rounds to 8 bits on the
way. Here as there the filter is widened when shrinking (no aliasing), its weights are 16-bit integers, rows are resized
before columns, and both results are rounded and clipped to 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from ...graphs import InputError

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
OUTPUTS = 16  #: outputs computed by one matrix product; their windows of the source overlap
KEPT_SIDE = 1 << 14  #: the longest side whose weights are kept for the next image: up to 2.5 MiB, of 16 sides
SEGMENT = 1 << 14  #: source pixels of one product for a longer side, so that its weights take at most 4 MiB
BUFFER = 1 << 21  #: source pixels of one product for a longer side, over all rows: 16 MiB as float64
#: multiply-adds that OpenBLAS does in one thread. It would split more of them among threads that wait for each other in
#: loops: where other threads work, as those that read a job's next images, that takes many times as long.
SERIAL = 1 << 19
ON_THE_WAY = 1 << 25  #: pixels of an image whose rows are resized and whose columns are not yet
LONGEST_SIDE = 1 << 23  #: of a row; the weights of 4 million pixels take about a second
PILLOW_SIDE = 1 << 20  #: the longest side for Pillow's own filters, which take about 48 bytes a pixel of it


class Segment(NamedTuple):
    """One matrix product. `(pixels[:, inputs] - 128) @ weights + offset` are grey levels of some outputs, or a part of
    them that is to be added to those of the other segments."""

    inputs: slice
    weights: np.ndarray  # (inputs, outputs), or (inputs, 2 * outputs) where a weight is the sum of two
    offset: np.ndarray  # (outputs,)


Block: TypeAlias = "tuple[slice, Iterable[Segment]]"  # outputs, and what they are computed from


def resize(
    planes: Sequence[np.ndarray], height: int, width: int, resample: str, part: tuple[slice, slice] | None = None
) -> np.ndarray:
    """Resize the three planes of an image, (rows, columns) of uint8, to (3, height, width).

    Args:
        part: the rows and columns of the result that are wanted; all if it is None.

    Raises:
        InputError: if a side is so long that resizing would take memory far beyond that of the image and the result.
    """
    rows, columns = planes[0].shape
    kept_rows, kept_columns = part or (slice(0, height), slice(0, width))
    if part is not None and height * width > ON_THE_WAY:
        raise InputError(
            f"an image of {columns} x {rows} pixels cannot be resized to {width} x {height} before its middle is cut"
            " out: it is too long and narrow; crop it first"
        )
    longest = LONGEST_SIDE if resample in SUPPORT else PILLOW_SIDE
    tallest = min(longest, ON_THE_WAY // (kept_columns.stop - kept_columns.start))
    if columns > longest or rows > tallest:
        raise InputError(
            f"an image of {columns} x {rows} pixels cannot be resized to {width} x {height}: at most {longest} x"
            f" {tallest} can be; crop it or scale it down first"
        )
    if resample not in SUPPORT:
        filter = Image.Resampling[resample.upper()]
        whole = (np.asarray(Image.fromarray(plane).resize((width, height), filter)) for plane in planes)
        return np.stack([plane[kept_rows, kept_columns] for plane in whole])
    # The weights of a long side are not kept: compute them once for all planes.
    groups = [planes] if columns > KEPT_SIDE else [[plane] for plane in planes]
    across = (plane for group in groups for plane in _along_rows(group, width, resample, kept_columns))
    return np.stack([_along_rows([plane.T], height, resample, kept_rows)[0].T for plane in across])


def _along_rows(planes: Sequence[np.ndarray], size: int, resample: str, kept: slice) -> Sequence[np.ndarray]:
    """Resize planes (rows, columns) to (rows, size) of uint8; of these, the columns `kept`."""
    rows, columns = planes[0].shape
    if columns == size:
        return [plane[:, kept] for plane in planes]
    if columns <= KEPT_SIDE:
        blocks: Iterable[Block] = _kept_blocks(columns, size, resample)
        longest = max(len(segment.weights) for _, segments in blocks for segment in segments)
    else:
        longest = min(max(BUFFER // rows, OUTPUTS), SEGMENT)
        blocks = _blocks(columns, size, resample, longest)
    centred = [(plane ^ np.uint8(128)).view(np.int8) for plane in planes]  # 128 less
    resized = [np.empty((rows, kept.stop - kept.start), np.uint8) for _ in planes]
    order = "F" if planes[0].flags.f_contiguous else "C"
    buffers: dict[np.dtype, np.ndarray] = {}  # one for all products: to get new memory would cost more than they do
    for outputs, segments in blocks:
        first, last = max(outputs.start, kept.start), min(outputs.stop, kept.stop)
        if first >= last:
            continue
        levels: list[np.ndarray] = []
        for segment in segments:
            dtype = segment.weights.dtype
            if dtype not in buffers:
                buffers[dtype] = np.empty((rows, longest), dtype, order)
            pixels = buffers[dtype][:, : len(segment.weights)]
            parts = [_levels(plane[:, segment.inputs], pixels, segment) for plane in centred]
            levels = [level + part for level, part in zip(levels, parts)] if levels else parts
        for plane, level in zip(resized, levels):
            wanted = level[:, first - outputs.start : last - outputs.start]
            plane[:, first - kept.start : last - kept.start] = np.clip(wanted, 0, 255, out=wanted)
    return resized


def _levels(window: np.ndarray, pixels: np.ndarray, segment: Segment) -> np.ndarray:
    """The part of a window of a plane in the levels (rows, outputs); `pixels` is a buffer for the window."""
    pixels[:] = window
    sums = np.empty((len(pixels), segment.weights.shape[1]), pixels.dtype)
    rows = max(1, SERIAL // segment.weights.size)
    for start in range(0, len(pixels), rows):
        np.matmul(pixels[start : start + rows], segment.weights, out=sums[start : start + rows])
    count = len(segment.offset)
    if sums.shape[1] > count:
        sums = sums[:, :count] + sums[:, count:].astype(np.float64)
    sums += segment.offset
    return sums


@lru_cache(maxsize=16)
def _kept_blocks(source: int, target: int, resample: str) -> list[Block]:
    return [(outputs, list(segments)) for outputs, segments in _blocks(source, target, resample, source)]


def _blocks(source: int, target: int, resample: str, longest: int) -> Iterator[Block]:
    """The products that resize a side of `source` pixels to `target`, each of at most `longest` source pixels.

    A product is exact as long as its sums are integers of 24 bits, in float32, times a power of two. Weights of more
    than 16 bits are split in two: the columns of the second part follow those of the first. That has 6 bits, so the
    sums of 4096 pixels or more need float64.
    """
    windows = _Windows(source, target, resample, keep=longest == source)
    dtype = np.float32 if windows.taps < 1 << 12 else np.float64
    blocks = list(windows.blocks(longest))
    sums, precision = _sums(windows, blocks)

    def segments(outputs: slice, inputs: Sequence[slice]) -> Iterator[Segment]:
        rounding = 0.5
        for window in inputs:
            scaled = windows.filter(outputs, window) / sums[outputs, None] * (1 << precision)
            weights = np.trunc(scaled + np.copysign(0.5, scaled))
            offset = 128 * weights.sum(1) / (1 << precision) + rounding
            rounding = 0.0
            if precision > 16:
                step = 1 << (precision - 16)
                upper = step * np.rint(weights / step)
                weights = np.concatenate([upper, weights - upper])
            product = np.ascontiguousarray((weights.T / (1 << precision)).astype(dtype))
            yield Segment(window, product, offset.astype(np.float32 if precision <= 16 else np.float64))

    for outputs, inputs in blocks:
        yield outputs, segments(outputs, inputs)


def _sums(windows: _Windows, blocks: Sequence[tuple[slice, Sequence[slice]]]) -> tuple[np.ndarray, int]:
    """The divisors (target,) of the weights of each output, and the bits by which the quotients are scaled."""
    sums, largest = np.zeros(windows.target), np.zeros(windows.target)
    for outputs, inputs in blocks:
        for window in inputs:
            weights = windows.filter(outputs, window)
            sums[outputs] += weights.sum(1)
            np.maximum(largest[outputs], weights.max(1), out=largest[outputs])
    peak = (largest / sums).max()
    return sums, next((bits for bits in range(22) if int(0.5 + peak * (1 << (bits + 1))) >= 1 << 15), 22)


class _Windows:
    """Which source pixels count for which output, and how much before the weights of an output are made to sum to 1.

    Attributes:
        target: the number of outputs.
        taps: the most source pixels that count for one output.
    """

    def __init__(self, source: int, target: int, resample: str, keep: bool) -> None:
        self.target, self._resample, self._keep = target, resample, keep
        self._weights: dict[tuple[int, int], np.ndarray] = {}
        scale = source / target
        self._stretch = max(scale, 1.0)
        support = SUPPORT[resample] * self._stretch
        self._centres = scale * (np.arange(target) + 0.5)
        self._first = np.maximum((self._centres - support + 0.5).astype(np.int64), 0)
        self._last = np.minimum((self._centres + support + 0.5).astype(np.int64), source)
        self.taps = int((self._last - self._first).max())

    def blocks(self, longest: int) -> Iterator[tuple[slice, list[slice]]]:
        """Outputs that are computed together, and their window in parts of at most `longest` source pixels."""
        count = OUTPUTS if self.taps <= longest else 1  # windows overlap: computing some together costs weights of 0
        for start in range(0, self.target, count):
            outputs = slice(start, min(start + count, self.target))
            left, right = int(self._first[start]), int(self._last[outputs.stop - 1])
            yield outputs, [slice(first, min(first + longest, right)) for first in range(left, right, longest)]

    def filter(self, outputs: slice, inputs: slice) -> np.ndarray:
        """(outputs, inputs) of float64; 0 for pixels beyond the window of an output."""
        key = outputs.start, inputs.start
        if key in self._weights:
            return self._weights.pop(key)
        distances = np.arange(inputs.start, inputs.stop) - self._centres[outputs, None] + 0.5
        weights = _filter(distances / self._stretch, self._resample)
        if self._keep:
            self._weights[key] = weights  # until they are asked for again
        return weights


def _filter(distances: np.ndarray, resample: str) -> np.ndarray:
    """The triangle, Keys' cubic with a = -1/2 (IEEE Trans. Acoustics, Speech, Signal Processing 29(6), 1981), or the
    sinc in a window that is the middle of a sinc three times as wide (Lanczos)."""
    x = np.abs(distances)
    if resample == "bilinear":
        return np.maximum(1 - x, 0)
    if resample == "lanczos":
        return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    x = np.minimum(x, 2)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2  # 0 at 2
    return np.where(x < 1, near, far)
