"""How much of a prompt runs between two steps, so that running answers do not wait long."""

from __future__ import annotations

import math

LEAST, MOST = 4, 512  #: tokens of a prompt that run at once
STEPS = 1.5  #: a part takes as long as so many steps, so that an answer waits for 2.5 in place of one
WEIGHT = 0.3  #: of the newest measurement in the mean


class Pace:
    """Chooses parts of prompts that take about `max_pause` seconds, and no more than `STEPS` steps take.

    Parts are as long as may be where nobody minds: `max_pause` is infinite.
    """

    def __init__(self, max_pause: float) -> None:
        self._max_pause = max_pause
        self._token_seconds: float | None = None
        self._step_seconds: float | None = None

    def tokens(self, left: int, others: bool) -> int:
        """How many of the `left` tokens of a prompt to run now. `others`: whether answers wait for it."""
        if not others or self._max_pause == math.inf:
            return min(left, MOST)
        if self._token_seconds is None:
            return min(left, LEAST)
        pause = self._max_pause if self._step_seconds is None else min(self._max_pause, STEPS * self._step_seconds)
        return min(left, max(LEAST, min(MOST, int(pause / self._token_seconds))))

    def ran_tokens(self, tokens: int, seconds: float, others: bool) -> None:
        """Note how long a part of a prompt took, if answers waited for it: a token of a long part takes less."""
        if others:
            self._token_seconds = _mean(self._token_seconds, seconds / tokens)

    def ran_step(self, seconds: float) -> None:
        """Note how long a step took."""
        self._step_seconds = _mean(self._step_seconds, seconds)


def _mean(before: float | None, now: float) -> float:
    return now if before is None else (1 - WEIGHT) * before + WEIGHT * now
