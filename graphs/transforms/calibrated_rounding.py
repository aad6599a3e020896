"""Rounding of weights in blocks that looks at what they are multiplied by: errors of some make up for those of others.

This is GPTQ (Frantar and others, 2022). A column of weights (in,) is rounded one weight at a time, those of the largest
inputs first. What rounding a weight changes in the products is made up for by the weights that are not rounded yet, as
far as inputs that were seen together allow. Scales are those of `quantize_blocks`, and so is what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from . import quantize_blocks
from .weights import Weight, slices

#: Inputs that may make up for each other's errors are so many neighbours: memory and time grow by the square and the
#: cube of their number. With half of a matrix's inputs the gain was the same on one trained checkpoint, 0.6 on another.
SPAN = 2048
DAMPING = 0.01  #: of the mean square, added to each input's: what was seen is a sample
TOGETHER = 32  #: weights of a column that are rounded before their errors are passed on to all others
AT_ONCE = 1 << 21  #: weights in memory at a time, for each thread


class Moments:
    """What has been seen of the inputs of a product: sums of products of two of them, within each span.

    Args:
        width: the number of inputs.
    """

    def __init__(self, width: int) -> None:
        self.spans = slices((width,), SPAN)
        self.sums = [np.zeros((span.stop - span.start,) * 2, np.float32) for span in self.spans]

    def add(self, inputs: np.ndarray) -> None:
        """Add inputs (..., width) that were multiplied by the weights."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        for span, total in zip(self.spans, self.sums):
            total += rows[:, span].T @ rows[:, span]

    @cached_property
    def corrections(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each span the order in which to round its inputs, and how errors are passed on from each to later ones.

        Both are of the span's length n: the order (n,), and a unit upper triangular matrix (n, n) of float32 whose
        rows and columns are in that order.
        """
        return [_correction(total.astype(np.float64)) for total in self.sums]


def _correction(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squares = total.diagonal().copy()
    order = np.argsort(-squares, kind="stable")
    total = total[order][:, order]
    total[np.diag_indices_from(total)] += DAMPING * squares.mean() or 1.0
    # total = M D M^T with a unit upper triangular M and a diagonal D, so errors e of weights cost the squares of e M,
    # times D. A column of e M has a weight's own error and those before it: it is made as small as rounding allows.
    upper = np.linalg.cholesky(total[::-1, ::-1])[::-1, ::-1]
    return order, (upper / upper.diagonal()).astype(np.float32)


def pieces(
    weight: Weight, moments: Moments, bits: int, block_size: int
) -> Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Makes the packed values and scales of a weight (in, out), as the pieces of `Streamed` tensors."""
    rows, columns = weight.shape.numpy()

    def made() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        corrections = list(zip(moments.spans, moments.corrections))
        for part in slices((columns, rows), AT_ONCE):
            exact = weight.columns(part)
            scales = quantize_blocks.quantized(exact, bits, block_size)[1]
            values = np.empty(exact.shape, np.float32)
            for span, (order, passed_on) in corrections:
                places = np.arange(span.start, span.stop)[order]
                steps = scales[:, places // block_size].T
                values[:, places] = _rounded(exact[:, places].T, steps, passed_on, bits).T
            yield quantize_blocks.packed(values, bits, block_size), scales

    return made


def _rounded(weights: np.ndarray, steps: np.ndarray, passed_on: np.ndarray, bits: int) -> np.ndarray:
    """Integers (in, out) of weights (in, out) whose scales are `steps` (in, out), rounded row by row."""
    half = 1 << (bits - 1)
    weights = np.ascontiguousarray(weights, np.float32)
    wanted, values, errors = weights.copy(), np.empty_like(weights), np.empty_like(weights)
    units = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
    for some in slices((len(wanted),), TOGETHER):
        for index in range(some.start, some.stop):
            value = np.clip(np.rint(wanted[index] * units[index]), -half, half - 1, out=values[index])
            np.subtract(weights[index], value * steps[index], out=errors[index])
            wanted[index + 1 : some.stop] += passed_on[index, index + 1 : some.stop, None] * errors[index]
        wanted[some.stop :] += passed_on[some, some.stop :].T @ errors[some]
    return values
