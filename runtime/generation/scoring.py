"""How likely given answers are: the decoding loop, with tokens that are given instead of chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .decode import decode
from .numerics import log_sum
from .steps import Steps
from .stops import EndTokens


def score(logits: np.ndarray, candidates: Sequence[Sequence[int]], end_ids: Sequence[int]) -> Steps[list[list[float]]]:
    """The log-probabilities of answers to one prompt: of each token, and at last of ending there.

    An answer ends with any of `end_ids`, so their probabilities are summed. A model without end tokens ends no answer:
    there each token has its log-probability, and nothing else has.

    Args:
        logits: (1, vocab), those after the prompt.
        candidates: the ids of each, none of `end_ids` among them.
    """
    log_probabilities: list[list[float]] = [[] for _ in candidates]

    def choose(index: int, scores: np.ndarray) -> int:
        position, ids = len(log_probabilities[index]), candidates[index]
        targets = [ids[position]] if position < len(ids) else list(end_ids)
        if not targets:
            return 0  # fed beside the candidates that are longer, and not looked at
        log_probabilities[index].append(log_sum(scores[targets]) - log_sum(scores))
        return targets[0]

    longest = max(1, max(map(len, candidates)) + bool(end_ids))
    yield from decode(logits, [()], choose, [], EndTokens(end_ids), longest, len(candidates))
    return log_probabilities
