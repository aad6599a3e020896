"""Fewer vectors a page: those that are alike become their mean, by Ward's clustering."""

from __future__ import annotations

import numpy as np


def pooled(vectors: np.ndarray, factor: int) -> np.ndarray:
    """Vectors (tokens, width) of length 1 as tokens // factor of them, at least one, again of length 1.

    The clusters are those of hierarchical clustering by Ward's criterion, in the order of their first tokens.
    """
    wanted = max(1, len(vectors) // factor)
    if factor == 1 or wanted >= len(vectors):
        return vectors
    labels = clusters(vectors, wanted)
    sums = np.zeros((wanted, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.maximum(norms, np.finfo(np.float32).tiny)


def clusters(vectors: np.ndarray, wanted: int) -> np.ndarray:
    """For each of the vectors (tokens, width) which of `wanted` clusters it is in, counted by their first tokens."""
    parents = np.arange(len(vectors))
    for one, other in _merges(vectors)[: len(vectors) - wanted]:
        roots = parents[one], parents[other]
        parents[parents == max(roots)] = min(roots)
    return np.unique(parents, return_inverse=True)[1]


def _merges(vectors: np.ndarray) -> list[tuple[int, int]]:
    """A token of each of the two clusters that are joined, from the closest two to the last two.

    A chain of nearest neighbours finds each pair that is nearest to one another (Murtagh, 1983); Ward's distances never
    become smaller by a merge, so the pairs need only be sorted afterwards.
    """
    count = len(vectors)
    squares = np.einsum("td,td->t", vectors, vectors).astype(np.float64)
    distances = squares[:, None] + squares - 2 * (vectors @ vectors.T)
    np.fill_diagonal(distances, np.inf)
    sizes, alive = np.ones(count), np.ones(count, bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < count - 1:
        if not chain:
            chain = [int(alive.argmax())]
        last = chain[-1]
        nearest = int(distances[last].argmin())
        if len(chain) > 1 and distances[last, chain[-2]] <= distances[last, nearest]:
            nearest = chain[-2]  # a tie must not send the chain in a circle
        if len(chain) < 2 or nearest != chain[-2]:
            chain.append(nearest)
            continue
        one, other = chain.pop(), chain.pop()
        height = distances[one, other]
        merges.append((float(height), one, other))
        both = sizes[one] + sizes[other]
        merged = (sizes[one] + sizes) * distances[one] + (sizes[other] + sizes) * distances[other] - sizes * height
        merged /= both + sizes
        merged[~alive] = merged[one] = merged[other] = np.inf
        distances[one], distances[:, one] = merged, merged
        distances[other], distances[:, other] = np.inf, np.inf
        sizes[one], alive[other] = both, False
    return [(one, other) for _, one, other in sorted(merges)]
