"""The decoding loop. It knows token ids and logits, not where they come from.

What else there is to decoding are small objects given to it: `filters` change logits, a strategy chooses from them,
stop conditions end an answer. `beam` is the same for beam search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .filters import Filter, expect_possible
from .logprobs import token_logprob
from .steps import Advance, Chosen, Steps, settle
from .stops import Stop

#: picks an id for the answer with an index from its logits (vocab,)
Choose = Callable[[int, np.ndarray], int]
#: takes the ids of prompt and answer; returns those that must come next, if any must
Force = Callable[[Sequence[int], Sequence[int]], list[int]]


def decode(
    logits: np.ndarray,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    filters: Sequence[Filter],
    stop: Stop,
    max_new_tokens: int,
    copies: int = 1,
    top_logprobs: int | None = None,
    forced: Force | None = None,
) -> Steps[list[list[Chosen]]]:
    """Choose the ids of answers, step by step, until all have ended or are cut; returns those of each answer.

    Answers that have ended are dropped from the batch; the last ones take their rows. Answer i is to the prompt
    i // copies.

    Args:
        logits: (prompts, vocab), those after the prompts: an array, or what stands for one on a device.
        prompts: the ids of each.
        choose: the strategy.
        filters: applied to logits before `choose`, in order.
        stop: takes the ids of an answer so far and returns whether the last of them ended it; that one is chosen.
        max_new_tokens: where an answer is cut.
        copies: how many answers a prompt gets.
        top_logprobs: for each chosen id, note its log-probability and so many likeliest ids; None for no note.
        forced: tells which ids must come next. They need no logits, so they run together with the id before them.
    """
    rows = [row for row in range(len(prompts)) for _ in range(copies)]  # of each answer on its way, in the batch
    indices = list(range(len(rows)))  # of each answer on its way
    history: list[list[Chosen]] = [[] for _ in rows]
    answers: list[list[int]] = [[] for _ in rows]
    only_ids = choose is greedy and not filters and top_logprobs is None  # these need not leave a device for more
    while True:
        likeliest = logits.argmax(axis=-1).tolist() if only_ids else []
        logits = logits if only_ids else np.asarray(logits)
        new: list[list[Chosen]] = []
        going = []
        for position, (row, index) in enumerate(zip(rows, indices)):
            prompt, answer = prompts[index // copies], answers[index]
            tokens = _forced(forced, prompt, answer, index)
            if not tokens:
                token = likeliest[row] if only_ids else choose(index, _filtered(filters, prompt, answer, logits[row]))
                note = None if top_logprobs is None else token_logprob(logits[row], token, top_logprobs)
                tokens = [Chosen(index, token, note)]
                tokens += _forced(forced, prompt, [*answer, token], index)
            added, ended = _until_end(tokens, answer, stop, max_new_tokens)
            new.append(added)
            history[index] += added
            if not ended:
                going.append(position)
        new_tokens = [token for tokens in new for token in tokens]
        order = [going[index] for index in settle(going)]
        if not order:
            yield Advance(new_tokens)
            return history
        rows, indices = [rows[position] for position in order], [indices[position] for position in order]
        runs = [[token.id for token in new[position]] for position in order]
        before = {position: ids[:-1] for position, ids in enumerate(runs) if len(ids) > 1}
        logits = yield Advance(new_tokens, rows, [ids[-1] for ids in runs], before)
        rows = list(range(len(rows)))


def _filtered(
    filters: Sequence[Filter], prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray
) -> np.ndarray:
    """What filters make of logits (vocab,)."""
    for change in filters:
        logits = change(prompt, answer, logits)
    if filters:
        expect_possible(logits)
    return logits


def _forced(forced: Force | None, prompt: Sequence[int], answer: Sequence[int], index: int) -> list[Chosen]:
    return [Chosen(index, token) for token in forced(prompt, answer)] if forced else []


def _until_end(tokens: list[Chosen], answer: list[int], stop: Stop, max_new_tokens: int) -> tuple[list[Chosen], bool]:
    """Add tokens to an answer until it has ended; those that were added, and whether it has."""
    for count, token in enumerate(tokens, 1):
        answer.append(token.id)
        if len(answer) == max_new_tokens or stop(answer):
            return tokens[:count], True
    return tokens, False


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
