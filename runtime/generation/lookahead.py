"""Several ids of an answer in one step: ids are guessed, run together, and kept as far as the search chooses them.

Guesses are looked up: the ids that followed the same ids before, in the prompt, in the answer or in earlier answers.
The search chooses every id itself, from the logits that it would have had. So its answer is the same, and takes fewer
steps where texts repeat. This is for one answer, whose tokens see only what stands before them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from .steps import Advance, Chosen, Steps

T = TypeVar("T")

MATCHED = 3  #: ids that must be the same for those that follow to be a guess
LONGEST = 7  #: ids of a guess: more cost as much as they may save
#: What an id of a guess adds to a step, as a share of a step of one id: 0.26 to 0.37 was measured with 4-bit weights.
COST = 0.35
FORGETTING = 0.93  #: what older guesses count for after each new one
RETURN = 0.006  #: how much of the way the rate goes back to `HOPED` in a step without a guess
HOPED, TRUST = 0.6, 3.0  #: the share of guessed ids that are right at first, and for how many ids this counts


class Ahead(Protocol):
    """A run of one answer that may get ahead of what has been chosen."""

    def run_each(self, ids: Sequence[int], kept: int) -> np.ndarray:
        """Run `ids` as the next ones of the only row; the logits (kept, vocab) after each of the last `kept`."""

    def forget(self, tokens: int) -> None:
        """Drop the last `tokens` tokens of the only row."""


class Earlier:
    """Ids of earlier answers, where they are looked up. Calls may share it.

    Args:
        size: how many of the latest ids are kept.
    """

    def __init__(self, size: int = 1 << 16) -> None:
        self._size = size
        self._after: OrderedDict[tuple[int, ...], tuple[Sequence[int], int]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, ids: Sequence[int]) -> None:
        """Add an answer's ids, which must not change any more."""
        with self._lock:
            for end in range(MATCHED, len(ids)):
                key = tuple(ids[end - MATCHED : end])
                self._after[key] = (ids, end)
                self._after.move_to_end(key)
            while len(self._after) > self._size:
                self._after.popitem(last=False)

    def find(self, key: tuple[int, ...]) -> tuple[Sequence[int], int] | None:
        """Ids, and where in them those begin that followed `key`."""
        return self._after.get(key)


class Guesses:
    """Guesses for one answer, as long as they pay.

    Args:
        prompt: its ids, images left out.
        earlier: where answers before it are looked up.
    """

    def __init__(self, prompt: Sequence[int], earlier: Earlier) -> None:
        self._earlier = earlier
        self._start = max(0, len(prompt) - MATCHED)
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._tried, self._right = TRUST, TRUST * HOPED  # ids of guesses, and how many were right; older count less
        self.extend(prompt)

    def extend(self, ids: Iterable[int]) -> None:
        """Add ids to the answer."""
        for token in ids:
            if len(self._ids) >= MATCHED:
                self._after[tuple(self._ids[-MATCHED:])] = len(self._ids)
            self._ids.append(token)

    def next(self, most: int) -> list[int]:
        """At most `most` ids that may come next; none where nothing is found, or where guesses do not pay."""
        length = min(most, self._worthwhile())
        key = tuple(self._ids[-MATCHED:])
        at = self._after.get(key)
        ids, start = (self._ids, at) if at is not None else self._earlier.find(key) or ((), 0)
        if not length or not len(ids):
            self._right += RETURN * (HOPED * self._tried - self._right)
            return []
        return list(ids[start : start + length])

    def judge(self, guessed: int, right: int) -> None:
        """Learn how many ids of a guess were right, from the first on. Those after the first wrong one tell nothing."""
        self._tried = FORGETTING * self._tried + min(guessed, right + 1)
        self._right = FORGETTING * self._right + right

    def close(self, last: Advance) -> None:
        """Remember the answer, whose last ids are given, for later ones."""
        self.extend(token.id for token in last.chosen)
        self._earlier.add(self._ids[self._start :])

    def _worthwhile(self) -> int:
        """How many guessed ids give the most ids for the time of a step."""
        rate = self._right / self._tried
        best, most, expected = 0, 1.0, 1.0
        for length in range(1, LONGEST + 1):
            expected += rate**length
            if expected / (1 + COST * length) > most:
                best, most = length, expected / (1 + COST * length)
        return best


class GuessedStep:
    """A step for the only answer: runs the ids that `advance` asks for, and a guess of those that come next.

    Args:
        room: how many tokens the run has room for.

    Attributes:
        logits: (1, vocab), those after the ids that have been chosen so far.
    """

    def __init__(self, run: Ahead, guesses: Guesses, advance: Advance, room: int) -> None:
        ids = ids_of(advance)
        guesses.extend(ids)
        self._run, self._guesses, self._right = run, guesses, 0
        self._guess = guesses.next(room - len(ids))
        self._logits = run.run_each([*ids, *self._guess], kept=1 + len(self._guess))

    @property
    def logits(self) -> np.ndarray:
        return self._logits[self._right :][:1]

    def guessed(self, advance: Advance) -> bool:
        """Whether the ids that `advance` asks for were guessed, so that `logits` are now those after them."""
        ids = ids_of(advance) if len(advance.rows) else []
        if not ids or self._guess[self._right : self._right + len(ids)] != ids:
            return False
        self._guesses.extend(ids)
        self._right += len(ids)
        return True

    def close(self) -> None:
        """Forget the ids that were guessed wrong."""
        if self._guess:
            self._guesses.judge(len(self._guess), self._right)
            self._run.forget(len(self._guess) - self._right)


def drive_ahead(search: Steps[T], run: Ahead, guesses: Guesses, room: int) -> Generator[Sequence[Chosen], None, T]:
    """`steps.drive` for a search for one answer, with guesses; the run has room for `room` more tokens."""
    try:
        advance = next(search)
        while len(advance.rows):
            yield advance.chosen
            step = GuessedStep(run, guesses, advance, room)
            room -= len(ids_of(advance))
            while step.guessed(advance := search.send(step.logits)):
                yield advance.chosen
                room -= len(ids_of(advance))
            step.close()
        yield advance.chosen
        guesses.close(advance)
        search.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a search goes on after its end")


def ids_of(advance: Advance) -> list[int]:
    """The ids that are to be run for the only answer."""
    return [*advance.before.get(0, ()), int(advance.ids[0])]
