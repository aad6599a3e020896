"""A value of a prompt and an answer, kept up to date id by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Incremental(Generic[Value]):
    """`begin(prompt, answer)`, computed from its value one id before where that is known.

    Values of the last two lengths of answers are kept, so rows may be dropped, repeated and reordered from step to
    step. Answers are compared as wholes: one that continues no answer of the step before begins anew. A prompt is known
    by its identity.

    Args:
        begin: computes the value from all ids.
        extend: computes the value after one more id. It must not change the value that it is given.
    """

    def __init__(
        self, begin: Callable[[Sequence[int], Sequence[int]], Value], extend: Callable[[Value, int], Value]
    ) -> None:
        self._begin, self._extend = begin, extend
        self._length = -1
        self._before: list[tuple[Sequence[int], list[int], Value]] = []
        self._now: list[tuple[Sequence[int], list[int], Value]] = []

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> Value:
        ids = list(answer)  # a copy: the answer itself may grow
        if len(ids) != self._length:
            self._length, self._before, self._now = len(ids), self._now, []
        for known_prompt, known_ids, value in self._now:
            if known_prompt is prompt and known_ids == ids:
                return value
        value = self._compute(prompt, ids)
        self._now.append((prompt, ids, value))
        return value

    def _compute(self, prompt: Sequence[int], ids: list[int]) -> Value:
        before = ids[:-1]
        for known_prompt, known_ids, value in self._before:
            if known_prompt is prompt and known_ids == before:
                return self._extend(value, ids[-1])
        return self._begin(prompt, ids)
