"""The decoding loop. It knows token ids and logits, not where they come from.

What else there is to decoding are small objects given to it: `filters` change logits, a strategy chooses from them,
stop conditions end an answer. `beam` is the same for beam search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .filters import Filter, expect_possible
from .stops import Stop

#: takes which rows of the batch go on (new batch,), some perhaps several times, and an id to append to each (new
#: batch,); returns the logits after them (new batch, vocab)
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: picks an id for the answer with an index from its logits (vocab,)
Choose = Callable[[int, np.ndarray], int]


def decode(
    logits: np.ndarray,
    step: Step,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    filters: Sequence[Filter],
    stop: Stop,
    max_new_tokens: int,
    copies: int = 1,
) -> Iterator[list[tuple[int, int]]]:
    """Yield (answer, id) of every answer that goes on, until all have ended or `max_new_tokens` are out.

    Answers that have ended are dropped from the batch; the last ones take their rows. Answer i is to the prompt
    i // copies.

    Args:
        logits: (prompts, vocab), those after the prompts.
        step: not called once it is not needed.
        prompts: the ids of each.
        choose: the strategy.
        filters: applied to logits before `choose`, in order.
        stop: takes the ids of an answer so far and returns whether the last of them ended it; that one is yielded.
        max_new_tokens: where an answer is cut.
        copies: how many answers a prompt gets.
    """
    rows = np.arange(len(prompts)).repeat(copies)  # of each answer on its way: its row in the batch, and its index
    indices = np.arange(len(rows))
    answers: list[list[int]] = [[] for _ in rows]
    for length in range(1, max_new_tokens + 1):
        for row, index in zip(rows, indices):
            scores = logits[row]
            for change in filters:
                scores = change(prompts[index // copies], answers[index], scores)
            if filters:
                expect_possible(scores)
            answers[index].append(choose(index, scores))
        yield [(int(index), answers[index][-1]) for index in indices]
        going = fill_gaps(np.array([not stop(answers[index]) for index in indices]))
        if length == max_new_tokens or not len(going):
            return
        rows, indices = rows[going], indices[going]
        logits = step(rows, np.array([answers[index][-1] for index in indices]))
        rows = np.arange(len(rows))


def fill_gaps(going: np.ndarray) -> np.ndarray:
    """The indices of True in `going` (batch,), so ordered that few rows move: the last ones fill the gaps."""
    rows = np.flatnonzero(going)
    order = np.arange(len(rows))
    stay = rows[rows < len(rows)]
    order[np.setdiff1d(order, stay, assume_unique=True)] = rows[rows >= len(rows)]
    return order


def on_host(step: Step) -> Step:
    """`step`, whose logits are arrays wherever they were computed; greedy decoding alone needs no more than ids."""
    return lambda rows, ids: np.asarray(step(rows, ids))


def greedy(index: int, logits: np.ndarray) -> int:
    """The likeliest id."""
    return int(logits.argmax())


class Sample:
    """An id drawn by its probability. Equal seeds give equal draws, whatever else is in the batch.

    Args:
        copies: how many answers a prompt gets; each draws on its own, those of another prompt alike.
        seed: None for another one each time.
    """

    def __init__(self, answers: int, copies: int, seed: int | None) -> None:
        if seed is None:
            self._random = [np.random.default_rng() for _ in range(answers)]
        else:
            self._random = [np.random.default_rng([seed, index % copies]) for index in range(answers)]

    def __call__(self, index: int, logits: np.ndarray) -> int:
        likely = np.exp(logits.astype(np.float64) - logits.max()).cumsum()
        return int(np.searchsorted(likely, self._random[index].random() * likely[-1], side="right"))
