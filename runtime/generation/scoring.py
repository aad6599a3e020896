"""How likely given answers are: the decoding loop, with tokens that are given instead of chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .decode import Step, decode, on_host
from .stops import EndTokens


def score(
    logits: np.ndarray, step: Step, candidates: Sequence[Sequence[int]], end_ids: Sequence[int]
) -> list[list[float]]:
    """The log-probabilities of answers to one prompt: of each token, and at last of ending there.

    An answer ends with any of `end_ids`, so their probabilities are summed.

    Args:
        logits: (1, vocab), those after the prompt.
        step: as for `decode`.
        candidates: the ids of each, none of `end_ids` among them.
    """
    found: list[list[float]] = [[] for _ in candidates]

    def choose(number: int, scores: np.ndarray) -> int:
        made, ids = len(found[number]), candidates[number]
        chosen = [ids[made]] if made < len(ids) else list(end_ids)
        found[number].append(_log_sum(scores[chosen]) - _log_sum(scores))
        return chosen[0]

    longest = max(map(len, candidates)) + 1
    for _ in decode(np.asarray(logits), on_host(step), [()], choose, [], EndTokens(end_ids), longest, len(candidates)):
        pass
    return found


def _log_sum(logits: np.ndarray) -> float:
    """The logarithm of the sum of exp(logits) (numbers,)."""
    largest = np.float64(logits.max())
    return float(largest + np.log(np.exp(logits - largest).sum()))
