"""How far a job is: counts, speed and errors by kind; and how it is shown, to people and to programs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .records import Record

MOST_KINDS = 1000  #: of errors that are told apart; a job where all rows fail in ways of their own has more
COMMONEST = 10
EVERY = 1.0  #: seconds between events of progress
EVERY_LINE = 30.0  #: seconds between lines where there is no terminal for a bar


class Progress:
    """Counts the rows of a job.

    Args:
        total: rows of the input.
        done: of them, those that have results from before.
        failed: of those, how many failed, by the kind of their error.
    """

    def __init__(self, total: int, done: int, failed: Mapping[str, int]) -> None:
        self.total, self.done, self.failed = total, done, Counter(failed)
        self._started, self._before = time.monotonic(), done
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
        return time.monotonic() - self._started

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


class Shown:
    """A bar; where the console is no terminal, a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = bars.Progress(
            bars.TextColumn("{task.completed:.0f}/{task.total:.0f} rows"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[speed]:.1f} rows/s"),
            bars.TextColumn("{task.fields[left]}"),
            bars.TextColumn("[red]{task.fields[errors]}[/]"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._told = time.monotonic()

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, progress: Progress) -> None:
        self._progress = progress
        self._task = self._bar.add_task("", total=progress.total, completed=progress.done, **self._fields())
        if progress.done:
            self._console.print(f"{progress.done} of {progress.total} rows have results from before", highlight=False)

    def row(self, _: object) -> None:
        self._bar.update(self._task, completed=self._progress.done, **self._fields())
        if not self._console.is_terminal and time.monotonic() - self._told > EVERY_LINE:
            self._told = time.monotonic()
            fields = self._fields()
            self._console.print(
                f"{self._progress.done}/{self._progress.total} rows, {fields['speed']:.1f} rows/s, {fields['left']}"
                f" {fields['errors']}",
                markup=False,
                soft_wrap=True,
            )

    def shard(self, path: Path, rows: int) -> None:
        """Files are not told of."""

    def _fields(self) -> dict[str, Any]:
        progress = self._progress
        left = progress.seconds_left
        kinds = [f"{count} x {kind:.60}" for kind, count in progress.failed.most_common(2)]
        errors = f"{progress.failed.total()} failed: {'; '.join(kinds)}" if kinds else ""
        return {
            "speed": progress.rows_per_second,
            "left": "" if left is None else f"{duration(left)} left",
            "errors": escape(errors),
        }


class Lines:
    """An object an event, which `tell` is told of."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._told = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._event("end")

    def start(self, progress: Progress) -> None:
        self._progress = progress
        self._event("start")

    def row(self, _: object) -> None:
        if time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self._event("progress")

    def shard(self, path: Path, rows: int) -> None:
        self._event("shard", path=str(path), written=rows)

    def _event(self, event: str, **more: Any) -> None:
        self._tell({"event": event, **more, **self._progress.event()})


def summary(progress: Progress) -> Table:
    """What became of a job."""
    event = progress.event()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("rows", str(event["rows"]))
    table.add_row("answered", str(event["done"] - event["failed"]))
    table.add_row("failed", str(event["failed"]))
    table.add_row("this time", f"{duration(progress.seconds)}, {progress.rows_per_second:.1f} rows/s")
    for kind, count in event["errors"].items():
        table.add_row(f"[red]{count} x[/]", escape(kind))
    return table


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
