"""How a search and what runs the model speak with each other: the search asks for steps, and is sent their logits.

So one loop can run the steps of one search, and another the steps of many searches together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from .logprobs import TokenLogprob

T = TypeVar("T")


class Chosen(NamedTuple):
    """An id that has been chosen.

    Attributes:
        index: which of the answers it belongs to.
        id: the id.
        logprob: how likely it was, if that was asked for.
    """

    index: int
    id: int
    logprob: TokenLogprob | None = None


class Advance(NamedTuple):
    """What has been chosen, and the step that is needed next.

    Attributes:
        chosen: the new ids.
        rows: for each row of the new batch, that of the batch before which it continues; none if all answers have
            ended.
        ids: for each of them the id to append.
        before: for some of the new rows, ids to append before that one.
    """

    chosen: Sequence[Chosen]
    rows: Sequence[int] = ()
    ids: Sequence[int] = ()
    before: Mapping[int, Sequence[int]] = {}


#: A search. It is sent the logits (new batch, vocab) of the step that it asked for, or None if it needs none.
Steps: TypeAlias = Generator[Advance, Any, T]
#: Runs a step: takes arrays of the `rows` and `ids` of an `Advance`, and `before`; returns logits (new batch, vocab).
Step: TypeAlias = Callable[[np.ndarray, np.ndarray, Mapping[int, Sequence[int]]], Any]


def drive(search: Steps[T], step: Step) -> Generator[Sequence[Chosen], None, T]:
    """Run a search to its end; yields what each step chooses, and returns what the search returns."""
    try:
        advance = next(search)
        while True:
            yield advance.chosen
            rows, ids = np.array(advance.rows), np.array(advance.ids)
            logits = step(rows, ids, advance.before) if len(rows) else None
            advance = search.send(logits)
    except StopIteration as end:
        return end.value


def settle(sources: Sequence[int]) -> list[int]:
    """An order of the rows that new rows continue, so that few of them move.

    A row that goes on stays where it is if that is one of the first `rows`; others fill the gaps. With rows 0, 2, 4 and
    5 of six going on, the order of their indices is 0, 2, 1, 3: the new rows are 0, 4, 2 and 5.
    """
    order = [-1] * len(sources)
    others = []
    for index, source in enumerate(sources):
        if source < len(order) and order[source] < 0:
            order[source] = index
        else:
            others.append(index)
    fill = iter(others)
    return [next(fill) if index < 0 else index for index in order]
