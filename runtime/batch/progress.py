"""How far a job is: counts, speed and errors by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import Any

from .records import Record

MOST_KINDS = 1000  #: of errors that are told apart; a job where all rows fail in ways of their own has more
COMMONEST = 10


class Progress:
    """Counts the rows of a job.

    Args:
        total: rows of the input.
        done: of them, those that have results from before.
        failed: of those, how many failed, by the kind of their error.
    """

    def __init__(self, total: int, done: int, failed: Mapping[str, int]) -> None:
        self.total, self.done, self.failed = total, done, Counter(failed)
        self._started, self._before = monotonic(), done
        self.tokens = 0

    def add(self, record: Record) -> None:
        """Count a row."""
        self.done += 1
        self.tokens += record.get("tokens") or 0
        if kind := record["error_kind"]:
            self.failed[kind if kind in self.failed or len(self.failed) < MOST_KINDS else "other errors"] += 1

    @property
    def seconds(self) -> float:
        """Since the job was started, this time."""
        return monotonic() - self._started

    @property
    def rows_per_second(self) -> float:
        """Of this time."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None before the first row."""
        left = self.total - self.done
        return left / self.rows_per_second if self.rows_per_second else None if left else 0.0

    def event(self) -> dict[str, Any]:
        """The numbers, for machines: those of the whole job, and the speed of this time."""
        return {
            "rows": self.total,
            "done": self.done,
            "failed": self.failed.total(),
            "errors": dict(self.failed.most_common(COMMONEST)),
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 3),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "tokens": self.tokens,
        }
