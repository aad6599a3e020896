"""Beam search: the likeliest answers as wholes. Like `decode`, it knows token ids and logits, not what they are of."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

IMPOSSIBLE = -1e9  #: the score of what must not be chosen


class Beams:
    """The beams of one prompt: answers on their way, and the best that have ended.

    An answer's score is the sum of its tokens' log-probabilities; that of an ended one is divided by
    length ** length_penalty.
    """

    def __init__(self, width: int, stop_ids: Collection[int], max_new_tokens: int, length_penalty: float) -> None:
        self.width, self.stop_ids = width, list(stop_ids)
        self.max_new_tokens, self.length_penalty = max_new_tokens, length_penalty
        self.done = False
        self.ended: list[tuple[float, list[int]]] = []
        self._running: list[list[int]] = [[] for _ in range(width)]
        self._scores = np.full(width, IMPOSSIBLE, np.float32)
        self._scores[0] = 0  # at first all beams are the same: only one of them counts

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose by the logits (width, vocab) of the beams which go on (width,), and with which ids (width,)."""
        vocab = logits.shape[1]
        scores = (_log_softmax(logits) + self._scores[:, None]).ravel()
        # Enough that `width` remain to go on even if all others end.
        candidates = _best(scores, max(2, 1 + len(self.stop_ids)) * self.width)
        parents, ids = candidates // vocab, candidates % vocab
        length = len(self._running[0]) + 1
        ends = np.isin(ids, self.stop_ids) | (length == self.max_new_tokens)
        if not self.done:
            divisor = length**self.length_penalty
            found = [
                (float(scores[candidates[place]]) / divisor, self._path(parents[place], ids[place]))
                for place in range(self.width)
                if ends[place]
            ]
            self.ended = sorted(self.ended + found, key=lambda pair: -pair[0])[: self.width]
        kept = _best(np.where(ends, IMPOSSIBLE, scores[candidates]), self.width)
        self._running = [self._path(parents[place], ids[place]) for place in kept]
        self._scores = np.where(ends, IMPOSSIBLE, scores[candidates])[kept].astype(np.float32)
        # Done when the best beam, ended here, would not be among those that have ended.
        full = len(self.ended) == self.width
        self.done |= full and self._scores[0] / length**self.length_penalty <= self.ended[-1][0]
        return parents[kept], ids[kept]

    def _path(self, parent: int, token: int) -> list[int]:
        return [*self._running[parent], int(token)]


def search(
    logits: np.ndarray,
    step: Callable[[np.ndarray, np.ndarray], np.ndarray],
    stop_ids: Collection[int],
    max_new_tokens: int,
    width: int,
    length_penalty: float,
) -> list[list[int]]:
    """The ids of the best answer to each prompt.

    Args:
        logits: (batch, vocab), those after the prompts.
        step: takes which rows go on (batch * width,) and with which ids (batch * width,), and returns the logits after
            them (batch * width, vocab). The rows of its first call are prompts, those of later calls beams.
        stop_ids: ids that end an answer.
        max_new_tokens: where an answer is cut.
        width: how many beams a prompt has.
        length_penalty: above 0 favours long answers, below 0 short ones.
    """
    prompts = [Beams(width, stop_ids, max_new_tokens, length_penalty) for _ in logits]
    logits = logits.repeat(width, axis=0)
    for made in range(1, max_new_tokens + 1):
        chosen = [beams.advance(some) for beams, some in zip(prompts, np.split(logits, len(prompts)))]
        if made == max_new_tokens or all(beams.done for beams in prompts):
            break
        parents = np.concatenate([row * width + kept for row, (kept, _) in enumerate(chosen)])
        logits = step(parents // width if made == 1 else parents, np.concatenate([ids for _, ids in chosen]))
    return [beams.ended[0][1] for beams in prompts]


def _best(scores: np.ndarray, number: int) -> np.ndarray:
    """Places of the largest scores, the largest first."""
    number = min(number, len(scores))
    some = np.argpartition(-scores, number - 1)[:number]
    return some[np.argsort(-scores[some], kind="stable")]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
