"""What rounding the weights costs vectors and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...graphs import contract, manifest
from ...runtime.retrieval import late_interaction

Arrays = Mapping[str, np.ndarray]


def vector_loss(exact: Sequence[Arrays], rounded: Sequence[Arrays]) -> manifest.VectorLoss:
    """The loss by rounding, from the vectors of the same pages and queries."""
    source, ours = (
        np.concatenate([arrays[name] for arrays in both for name in (contract.VECTORS, contract.QUERY_VECTORS)])
        for both in (exact, rounded)
    )
    cosines = np.einsum("td,td->t", source, ours)
    scores, our_scores = (
        late_interaction(*([arrays[name] for arrays in both] for name in (contract.QUERY_VECTORS, contract.VECTORS)))
        for both in (exact, rounded)
    )
    return manifest.VectorLoss(
        vectors=float(np.linalg.norm(ours - source) / np.linalg.norm(source)),
        cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        scores=float(np.abs(our_scores - scores).max() / np.abs(scores).max()),
    )
