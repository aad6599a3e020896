"""Beam search: the likeliest answers as wholes. Like `decode`, it knows token ids and logits, not what they are of.

Scores, their order and when a search ends are those of transformers' beam search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .filters import Filter, expect_possible
from .numerics import UNLIKELY, log_softmax
from .steps import Advance, Steps
from .stops import Stop


@dataclass(frozen=True)
class BeamSettings:
    """How to search.

    Attributes:
        width: how many beams a prompt has.
        candidates: how many continuations are considered at a step; more than `width`, as some of them end.
        max_new_tokens: where an answer is cut.
        length_penalty: the score of an answer is the sum of its tokens' log-probabilities, divided by its length to
            this power: above 0 favours long answers, below 0 short ones.
        early_stopping: once `width` answers of a prompt have ended, True stops there. False goes on until the best
            running beam, ended now, would not be one of them; "never" until it could not be one at any length.
    """

    width: int
    candidates: int
    max_new_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


class Beams:
    """The beams of one prompt: answers on their way, and the best that have ended.

    Args:
        random: draws among the ways to go on; None for the likeliest.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        settings: BeamSettings,
        filters: Sequence[Filter],
        stop: Stop,
        random: np.random.Generator | None = None,
    ) -> None:
        self._prompt, self._settings, self._filters, self._stop = prompt, settings, filters, stop
        self._random = random
        self.done = False
        self.ended: list[tuple[float, list[int]]] = []  #: scores and ids, the best first
        self._running: list[list[int]] = [[] for _ in range(settings.width)]
        self._scores = np.full(settings.width, UNLIKELY, np.float32)
        self._scores[0] = 0  # at first all beams are the same: only one of them counts

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose by the logits (width, vocab) of the beams which go on (width,), and with which ids (width,)."""
        width, vocab = logits.shape
        likely = log_softmax(logits)
        for change in self._filters:
            likely = np.stack([change(self._prompt, ids, row) for ids, row in zip(self._running, likely)])
        scores = (likely + self._scores[:, None]).ravel()
        expect_possible(scores)
        candidates = self._candidates(scores)
        paths = [[*self._running[candidate // vocab], int(candidate % vocab)] for candidate in candidates]
        length = len(paths[0])
        ends = np.array([self._stop(path) or length == self._settings.max_new_tokens for path in paths])
        scores = scores[candidates]
        if not self.done:
            divisor = length**self._settings.length_penalty
            ended = [(float(scores[index]) / divisor, paths[index]) for index in np.flatnonzero(ends[:width])]
            self.ended = sorted(self.ended + ended, key=lambda pair: -pair[0])[:width]
        scores = (scores + np.where(ends, UNLIKELY, 0)).astype(np.float32)
        best = _best(scores, width)
        self._running = [paths[index] for index in best]
        self._scores = scores[best]
        self.done |= len(self.ended) == width and self._cannot_improve(length)
        return candidates[best] // vocab, candidates[best] % vocab

    def _candidates(self, scores: np.ndarray) -> np.ndarray:
        """Indices into `scores` of the continuations that are considered, the best first."""
        if self._random is not None:  # drawing without replacement is taking the largest with Gumbel noise added
            scores = scores + self._random.gumbel(size=scores.shape)
        return _best(scores, self._settings.candidates)

    def _cannot_improve(self, length: int) -> bool:
        """Whether no running beam can become better than those that have ended, by the rule of `early_stopping`."""
        settings = self._settings
        if settings.early_stopping is True:
            return True
        never = settings.early_stopping == "never" and settings.length_penalty > 0
        longest = settings.max_new_tokens if never else length
        return bool(self._scores[0] / longest**settings.length_penalty <= self.ended[-1][0])


def search(
    logits: np.ndarray, prompts: Sequence[Beams], settings: BeamSettings
) -> Steps[list[list[tuple[float, list[int]]]]]:
    """Search for answers, step by step. The rows of a step are prompts in the first one, beams in others.

    The beams of a prompt that is done are dropped from the batch.

    Args:
        logits: (prompts, vocab), those after the prompts.
        prompts: the beams of each.

    Returns:
        For each prompt the scores and ids of its `settings.width` best answers, the best first.
    """
    width = settings.width
    rows = np.arange(len(prompts)).repeat(width)
    going = list(prompts)
    for length in range(1, settings.max_new_tokens + 1):
        logits = np.asarray(logits)
        parts = np.split(rows, len(going))
        continuations = [beams.advance(logits[part]) for beams, part in zip(going, parts)]
        unfinished = [index for index, beams in enumerate(going) if not beams.done]
        if length == settings.max_new_tokens or not unfinished:
            break
        parents = np.concatenate([parts[index][continuations[index][0]] for index in unfinished]).tolist()
        ids = np.concatenate([continuations[index][1] for index in unfinished]).tolist()
        logits = yield Advance([], parents, ids)
        going = [going[index] for index in unfinished]
        rows = np.arange(len(parents))
    return [beams.ended for beams in prompts]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest scores, the largest first."""
    count = min(count, len(scores))
    largest = np.argpartition(-scores, count - 1)[:count]
    return largest[np.argsort(-scores[largest], kind="stable")]
