"""How likely the model itself held a chosen token, whatever filters made of its logits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .numerics import log_sum


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log-probability by the model's own logits.

    Attributes:
        id: the token's id.
        logprob: its log-probability.
        top: the likeliest ids at this position with their log-probabilities, the likeliest first.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


def token_logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    """The log-probability of `token` by logits (vocab,), and the `top` likeliest ids."""
    total = log_sum(logits)
    likeliest = np.argpartition(-logits, top)[:top] if 0 < top < len(logits) else np.arange(min(top, len(logits)))
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    pairs = [(int(token_id), float(logits[token_id]) - total) for token_id in likeliest]
    return TokenLogprob(token, float(logits[token]) - total, pairs)
