"""Softmax and its logarithm, and the logits of what is not to be chosen."""

from __future__ import annotations

import numpy as np

IMPOSSIBLE = np.float32(-np.inf)  #: the logit of an id that must not be chosen
UNLIKELY = np.float32(-1e9)  #: what comes after all others, but may come


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (vocab,)."""
    likely = np.exp(logits - logits.max())
    return likely / likely.sum()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits (..., vocab)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sum(logits: np.ndarray) -> float:
    """The logarithm of the sum of exp(logits) (numbers,)."""
    largest = np.float64(logits.max())
    return float(largest + np.log(np.exp(logits - largest).sum()))
