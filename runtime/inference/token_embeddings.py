"""Prompts as the decoder takes them: rows of the embedding table, image embeddings in their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...graphs.manifest import Embedding


def embed(table: np.ndarray, ids: np.ndarray, recipe: Embedding) -> np.ndarray:
    """Scaled rows of `table` for `ids` (...): (..., hidden) of float32. Only these rows are read from disk."""
    return unpacked(table[ids]) * np.float32(recipe.scale)


def unpacked(rows: np.ndarray) -> np.ndarray:
    """Rows (..., hidden) as float32. What uint16 holds is bfloat16, which NumPy does not know; what uint8 holds is
    (..., hidden + 4): int8 values and, in the last four bytes, the float32 that they are multiplied by."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    if rows.dtype == np.uint8:
        rows = np.ascontiguousarray(rows)
        return rows[..., :-4].view(np.int8) * rows[..., -4:].view(np.float32)
    return rows.astype(np.float32)


def merge(
    table: np.ndarray, ids: np.ndarray, places: np.ndarray, image_embeds: Sequence[np.ndarray], recipe: Embedding
) -> np.ndarray:
    """Embeddings (tokens, hidden) of `ids` (tokens,), where the rows of `image_embeds`, each (tiles, image_tokens,
    hidden), replace those at `places` (tokens,) in order. The ids there are not looked up and may lie beyond the table.
    """
    merged = embed(table, np.where(places, 0, ids), recipe)
    if image_embeds:
        merged[places] = np.concatenate(image_embeds).reshape(-1, merged.shape[1])
    return merged


def pad_right(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (tokens, hidden) of different lengths as one array (rows, longest, hidden), zeros behind."""
    padded = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), rows[0].dtype)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded
