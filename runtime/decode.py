"""The decoding loop. It knows token ids and logits, not where they come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

Choose = Callable[[np.ndarray], np.ndarray]


def greedy(logits: np.ndarray) -> np.ndarray:
    """The likeliest id of each row; `logits` (batch, vocab)."""
    return logits.argmax(axis=-1)


def decode(
    logits: np.ndarray,
    step: Callable[[np.ndarray], np.ndarray],
    choose: Choose,
    stop_ids: Collection[int],
    max_new_tokens: int,
) -> Iterator[list[int | None]]:
    """Yield one id a row, None for rows that have ended, until every row has ended or `max_new_tokens` are out.

    Args:
        logits: (batch, vocab), those after the prompt.
        step: takes the ids just chosen, (batch,), and returns the logits after them. Not called once it is not needed.
        choose: picks an id a row from logits.
        stop_ids: ids that end a row; they are yielded.
    """
    ended = np.zeros(len(logits), bool)
    for made in range(1, max_new_tokens + 1):
        ids = choose(logits)
        yield [None if over else int(token) for over, token in zip(ended, ids)]
        ended |= np.isin(ids, list(stop_ids))
        if ended.all() or made == max_new_tokens:
            return
        logits = step(ids)
