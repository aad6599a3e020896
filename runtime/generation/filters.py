"""Logit filters: each one thing that is done to the logits of an answer before a token is chosen.

They give what transformers' logits processors of the same names give for the ids of prompt and answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ...graphs import GenerationError
from .incremental import Incremental
from .numerics import IMPOSSIBLE, softmax

#: takes the ids of the prompt, those of the answer so far, and logits (vocab,); returns logits (vocab,), -inf for ids
#: that must not be chosen
Filter: TypeAlias = Callable[[Sequence[int], Sequence[int], np.ndarray], np.ndarray]


def _ids(prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.asarray(prompt, np.int64), np.asarray(answer, np.int64)])


def _distinct(prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    return np.unique(_ids(prompt, answer))


def _with_id(distinct: np.ndarray, token_id: int) -> np.ndarray:
    return distinct if (distinct == token_id).any() else np.append(distinct, token_id)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Logits of ids in prompt and answer are divided by `penalty` if positive, multiplied if negative; those of ids in
    the prompt alone if not `with_answer`."""

    penalty: float
    with_answer: bool = True
    _seen: Incremental[np.ndarray] = field(
        init=False, repr=False, compare=False, default_factory=lambda: Incremental(_distinct, _with_id)
    )

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        seen = self._seen(prompt, answer if self.with_answer else ())
        seen = seen[seen < len(logits)]  # placeholders of images may lie beyond the vocabulary
        penalty, scores = np.float32(self.penalty), logits[seen]
        changed = logits.copy()
        changed[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        return changed


@dataclass(frozen=True)
class NoRepeatNGrams:
    """No sequence of `size` ids occurs twice in prompt and answer."""

    size: int
    _all: Incremental[np.ndarray] = field(
        init=False, repr=False, compare=False, default_factory=lambda: Incremental(_ids, np.append)
    )

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        ids = self._all(prompt, answer)
        if len(ids) < self.size:
            return logits
        following = np.arange(self.size - 1, len(ids))  # indices of ids that followed what stands last
        for back in range(1, self.size):
            following = following[ids[following - back] == ids[-back]]
        return _without(logits, ids[following])


@dataclass(frozen=True)
class BadWords:
    """None of these sequences of ids comes to its end."""

    sequences: tuple[tuple[int, ...], ...]

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        longest = max(map(len, self.sequences))
        before = prompt[max(0, len(prompt) - longest) :] if len(answer) < longest else ()
        last = tuple(map(int, [*before, *answer[-longest:]]))
        banned = [ids[-1] for ids in self.sequences if last[len(last) - len(ids) + 1 :] == ids[:-1]]
        return _without(logits, np.array(banned, np.int64))


@dataclass(frozen=True)
class Suppress:
    """None of these ids is chosen; if `until` is given, only before the answer has so many ids, those of the prompt
    counted as well if `with_prompt`."""

    ids: tuple[int, ...]
    until: int | None = None
    with_prompt: bool = False

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        length = len(answer) + (len(prompt) if self.with_prompt else 0)
        if self.until is not None and length >= self.until:
            return logits
        return _without(logits, np.array(self.ids, np.int64))


@dataclass(frozen=True)
class ForceEnd:
    """The last id of an answer that is cut at `length` ids is one of `ids`, all equally likely."""

    ids: tuple[int, ...]
    length: int

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        if len(answer) != self.length - 1:
            return logits
        forced = np.full_like(logits, IMPOSSIBLE)
        forced[list(self.ids)] = 0
        return forced


@dataclass(frozen=True)
class Temperature:
    """Logits divided by a temperature: above 0, below 1 likely ids become likelier."""

    temperature: float

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return logits / np.float32(self.temperature)


@dataclass(frozen=True)
class TopK:
    """Only ids with logits as large as the `count` largest."""

    count: int

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        count = min(self.count, len(logits))
        return np.where(logits < np.partition(logits, -count)[-count], IMPOSSIBLE, logits)


@dataclass(frozen=True)
class TopP:
    """Only the likeliest ids whose probabilities together reach `share`, and at least `least`."""

    share: float
    least: int = 1

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        order = np.argsort(logits)
        unlikely = order[np.cumsum(softmax(logits[order])) <= 1 - self.share]
        return _without(logits, unlikely[: len(logits) - self.least])


@dataclass(frozen=True)
class MinP:
    """Only ids at least `share` times as likely as the likeliest, and at least `least`."""

    share: float
    least: int = 1

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        likely = softmax(logits)
        unlikely = likely < np.float32(self.share) * likely.max()
        unlikely[np.argpartition(-likely, self.least - 1)[: self.least]] = False
        return np.where(unlikely, IMPOSSIBLE, logits)


def expect_possible(logits: np.ndarray) -> None:
    """Raise a GenerationError if filters left nothing to choose."""
    if not logits.max() > IMPOSSIBLE:
        raise GenerationError("the options leave no token to go on with; allow more ids, or shorter answers")


def _without(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Logits without those of some ids; ids beyond the vocabulary are left out."""
    changed = logits.copy()
    changed[ids[ids < len(logits)]] = IMPOSSIBLE
    return changed
