"""Prompts as the decoder takes them: rows of the embedding table, with image embeddings between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...graphs import BundleError
from ...graphs.manifest import Embedding

TYPES = ("float32", "float16", "uint16", "uint8")  #: see `dequantized_rows`


def load_table(path: Path, hidden: int, vocab: int) -> np.ndarray:
    """The embedding table, (rows, ...) as `dequantized_rows` takes it, left on disk.

    Args:
        hidden: the width of embeddings that the decoder takes.
        vocab: the number of ids that it writes; each needs a row.

    Raises:
        BundleError: if the file is damaged, or holds no such table.
    """
    try:
        table = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # the header is a Python literal: a damaged one raises errors of many kinds
        raise BundleError(f"{path} does not load: {error}; export the bundle again") from None
    if table.ndim != 2 or table.dtype.name not in TYPES or not len(table):
        raise BundleError(
            f"{path} holds {table.shape} of {table.dtype}, not (rows, hidden) of {', '.join(TYPES)}; export the bundle"
            " again"
        )
    width = dequantized_rows(table[:1]).shape[-1]
    if width != hidden:
        raise BundleError(f"{path}: rows of {width}, the decoder takes {hidden}; export the bundle again")
    if len(table) < vocab:
        raise BundleError(f"{path}: {len(table)} rows, the decoder writes {vocab} ids; export the bundle again")
    return table


def embed(table: np.ndarray, ids: np.ndarray, recipe: Embedding) -> np.ndarray:
    """Scaled rows of `table` for `ids` (...): (..., hidden) of float32, with a 0 behind each if the recipe has `ahead`.

    Only these rows are read from disk.

    Raises:
        BundleError: for an id beyond the table.
    """
    if ids.size and ids.max() >= len(table):
        raise BundleError(
            f"the tokenizer has the id {ids.max()}, the embedding table {len(table)} rows; export the bundle again"
        )
    rows = dequantized_rows(table[ids]) * np.float32(recipe.scale)
    return np.concatenate([rows, np.zeros((*ids.shape, 1), np.float32)], -1) if recipe.ahead else rows


def dequantized_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (..., hidden) as float32.

    Rows of uint16 are bfloat16, which NumPy does not know. Rows of uint8 are (..., hidden + 4): int8 values and, in the
    last four bytes, the float32 that they are multiplied by.
    """
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    if rows.dtype == np.uint8:
        rows = np.ascontiguousarray(rows)
        return rows[..., :-4].view(np.int8) * rows[..., -4:].view(np.float32)
    return rows.astype(np.float32)


def merge(
    table: np.ndarray, ids: np.ndarray, is_image: np.ndarray, image_embeds: Sequence[np.ndarray], recipe: Embedding
) -> np.ndarray:
    """Embeddings (tokens, hidden) of `ids` (tokens,) and, where `is_image` (tokens,) is True, of images.

    These are the rows of `image_embeds`, each (tiles, image_tokens, hidden), in order. The ids there are not looked up
    and may lie beyond the table. If the recipe has `ahead`, the width is hidden + 1.
    """
    merged = embed(table, np.where(is_image, 0, ids), recipe)
    if image_embeds:
        rows = np.concatenate(image_embeds)
        merged[is_image, : rows.shape[-1]] = rows.reshape(-1, rows.shape[-1])
    if recipe.ahead:
        # Placeholders side by side are one image, as in the source: text stands between two.
        ends = np.flatnonzero(is_image & ~np.append(is_image[1:], False))
        places = np.flatnonzero(is_image)
        merged[places, -1] = ends[np.searchsorted(ends, places)] - places
    return merged


def uncut(row: np.ndarray, end: int, start: int | None = None) -> int:
    """Where to end a part of a prompt (tokens, hidden + 1) that cuts no image: at `end`, or before the image there.

    Args:
        start: where the part begins. If it would have nothing but that image, it ends behind it; without a `start` it
            is empty then.
    """
    first = start or 0
    ends = np.flatnonzero(row[first:end, -1] == 0)
    if len(ends):
        return first + int(ends[-1]) + 1
    return 0 if start is None else end + int(row[end - 1, -1])


def pad_right(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (tokens, hidden) of different lengths as one array (rows, longest, hidden), zeros behind."""
    padded = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), rows[0].dtype)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded


def common_length(row: np.ndarray, other: np.ndarray) -> int:
    """How many embeddings at the start of two rows (tokens, hidden) are equal."""
    size = min(len(row), len(other))
    differ = (row[:size] != other[:size]).any(axis=1)
    return int(differ.argmax()) if differ.any() else size
