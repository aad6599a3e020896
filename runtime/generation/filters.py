"""Logit filters: each one thing that is done to the logits of an answer before a token is chosen.

They give what transformers' logits processors of the same names give for the ids of prompt and answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

#: takes the ids of the prompt, those of the answer so far, and logits (vocab,); returns logits (vocab,), -inf for ids
#: that must not be chosen
Filter: TypeAlias = Callable[[Sequence[int], Sequence[int], np.ndarray], np.ndarray]
IMPOSSIBLE = np.float32(-np.inf)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Logits of ids that stand in prompt or answer are divided by `penalty` if positive, multiplied if negative."""

    penalty: float

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        seen = np.unique([*prompt, *answer])
        seen = seen[seen < len(logits)]  # placeholders of pictures may lie beyond the vocabulary
        changed = logits.copy()
        changed[seen] = np.where(logits[seen] < 0, logits[seen] * self.penalty, logits[seen] / self.penalty)
        return changed


@dataclass(frozen=True)
class NoRepeatNGrams:
    """No sequence of `size` ids occurs twice in prompt and answer."""

    size: int

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        ids = np.array([*prompt, *answer])
        if len(ids) < self.size:
            return logits
        windows = np.lib.stride_tricks.sliding_window_view(ids, self.size)
        last = ids[len(ids) - self.size + 1 :]
        banned = windows[(windows[:, :-1] == last).all(axis=1), -1]
        return _without(logits, banned[banned < len(logits)])


@dataclass(frozen=True)
class Temperature:
    """Logits divided by a temperature: above 0, below 1 likely ids become likelier."""

    temperature: float

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return logits / np.float32(self.temperature)


@dataclass(frozen=True)
class TopK:
    """Only ids with logits as large as the `number` largest."""

    number: int

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        number = min(self.number, len(logits))
        return np.where(logits < np.partition(logits, -number)[-number], IMPOSSIBLE, logits)


@dataclass(frozen=True)
class TopP:
    """Only the likeliest ids whose probabilities together reach `share`, and at least `least`."""

    share: float
    least: int = 1

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        order = np.argsort(logits)
        unlikely = order[np.cumsum(_softmax(logits[order])) <= 1 - self.share]
        return _without(logits, unlikely[: len(logits) - self.least])


@dataclass(frozen=True)
class MinP:
    """Only ids at least `share` times as likely as the likeliest, and at least `least`."""

    share: float
    least: int = 1

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        likely = _softmax(logits)
        unlikely = likely < np.float32(self.share) * likely.max()
        unlikely[np.argpartition(-likely, self.least - 1)[: self.least]] = False
        return np.where(unlikely, IMPOSSIBLE, logits)


def _without(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    changed = logits.copy()
    changed[ids] = IMPOSSIBLE
    return changed


def _softmax(logits: np.ndarray) -> np.ndarray:
    likely = np.exp(logits - logits.max())
    return likely / likely.sum()
