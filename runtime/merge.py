"""Prompts as the decoder takes them: rows of the embedding table, image embeddings in their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graphs.manifest import Embedding


def embed(table: np.ndarray, ids: np.ndarray, recipe: Embedding) -> np.ndarray:
    """Scaled rows of `table` (vocab, hidden) for `ids` (...): (..., hidden). Only these rows are read from disk."""
    return table[ids].astype(np.float32) * np.float32(recipe.scale)


def merge(
    table: np.ndarray, ids: np.ndarray, places: np.ndarray, image_embeds: Sequence[np.ndarray], recipe: Embedding
) -> np.ndarray:
    """Embeddings (tokens, hidden) of `ids` (tokens,), where the rows of `image_embeds`, each (tiles, image_tokens,
    hidden), replace those at `places` (tokens,) in order. The ids there are not looked up and may lie beyond the table.
    """
    merged = embed(table, np.where(places, 0, ids), recipe)
    if image_embeds:
        merged[places] = np.concatenate(image_embeds).reshape(-1, table.shape[1])
    return merged


def pad_right(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (tokens, hidden) of different lengths as one array (rows, longest, hidden), zeros behind."""
    padded = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), rows[0].dtype)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded
