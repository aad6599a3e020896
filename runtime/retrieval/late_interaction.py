"""The score of a query and a page: of each token of the query the best similarity to a token of the page, summed.

This is MaxSim of ColBERT (Khattab and Zaharia, 2020), as the processors of transformers compute it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...graphs import InputError

LEVELS = 127  #: of int8: a vector's numbers, from -1 to 1, times this
AT_ONCE = 1 << 24  #: similarities that are held at a time


def rounded(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Vectors of length 1, (tokens, width) of float32, in another dtype; int8 has them times `LEVELS`."""
    if dtype == "int8":
        return np.rint(vectors * LEVELS).astype(np.int8)
    return vectors.astype(dtype)


def late_interaction(queries: Sequence[np.ndarray], pages: Sequence[np.ndarray]) -> np.ndarray:
    """Scores (queries, pages) of float32: a higher one is a better match.

    Args:
        queries, pages: the vectors (tokens, width) of each, of float32, float16 or int8, as `VLM.embed` returns them.

    Raises:
        InputError: if there are none of either, or one is no such array.
    """
    asked = [_floats(vectors, f"queries[{index}]") for index, vectors in enumerate(queries)]
    held = [_floats(vectors, f"pages[{index}]") for index, vectors in enumerate(pages)]
    if not asked or not held:
        raise InputError(f"there are {len(asked)} queries and {len(held)} pages; give at least one of each")
    widths = {vectors.shape[1] for vectors in (*asked, *held)}
    if len(widths) > 1:
        raise InputError(f"vectors have {' and '.join(map(str, sorted(widths)))} numbers; give those of one model")
    rows = np.concatenate(asked)
    begin = np.cumsum([0, *map(len, asked)])[:-1]
    scores = []
    for part in _parts(held, max(1, AT_ONCE // len(rows))):
        similar = rows @ np.concatenate(part).T
        best = np.maximum.reduceat(similar, np.cumsum([0, *map(len, part)])[:-1], axis=1)
        scores.append(np.add.reduceat(best, begin, axis=0))
    return np.concatenate(scores, axis=1)


def _floats(vectors: Any, name: str) -> np.ndarray:
    array = np.asarray(vectors)
    if array.ndim != 2 or not array.size or array.dtype.name not in ("float32", "float16", "int8"):
        raise InputError(
            f"{name} is {array.shape} of {array.dtype}; give (tokens, width) of float32, float16 or int8, with at least"
            " one token"
        )
    floats = array.astype(np.float32)
    return floats / LEVELS if array.dtype == np.int8 else floats


def _parts(pages: list[np.ndarray], tokens: int) -> Iterator[list[np.ndarray]]:
    """Pages in parts that have at most so many tokens, or one page."""
    part: list[np.ndarray] = []
    for page in pages:
        if part and sum(map(len, part)) + len(page) > tokens:
            yield part
            part = []
        part.append(page)
    yield part
