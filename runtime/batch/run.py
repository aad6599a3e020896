"""Runs a job from its beginning, or from where it was, to its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ...graphs import InputError
from .job import Job, Plan, collect, left, plan
from .progress import Progress
from .records import Record, schema
from .rows import Reader
from .shards import FORMATS, Done, Format, Shards
from .sources import Source, open_source
from .spec import Spec

Engine: TypeAlias = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")


@dataclass(frozen=True)
class Batch:
    """A job to run.

    Attributes:
        input: a folder of images, a file of rows, or a saved dataset.
        output: the folder for the results.
        spec: how rows are answered; its `base` and `carry_as_text` follow from input and output.
        format: of the results, "jsonl" or "parquet".
        shard_rows: results in one file. A job that is killed loses no more than this.
        retry_errors: answer rows anew that failed before.
        mix_providers: go on also where another provider answered the rows before.
    """

    input: Path
    output: Path
    spec: Spec
    format: Format = "jsonl"
    shard_rows: int = 256
    retry_errors: bool = False
    mix_providers: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"the format is {self.format!r}; give one of {', '.join(FORMATS)}")
        if type(self.shard_rows) is not int or self.shard_rows < 1:
            raise InputError(f"shard_rows is {self.shard_rows!r}; give 1 or more")


@dataclass(frozen=True)
class Opened:
    """A job that has been opened: its input, its folder and results, and what is left."""

    job: Job
    source: Source
    spec: Spec
    reader: Reader
    shards: Shards
    done: Done
    plan: Plan


#: Answers the rows that are left.
Answer: TypeAlias = Callable[[Opened], AbstractContextManager[Iterator[Record]]]


@contextmanager
def answer_here(opened: Opened) -> Iterator[Iterator[Record]]:
    """Answer rows in this process."""
    with opened.spec.worker() as worker:
        opened.job.note_arithmetic(worker.arithmetic)
        rows = left(opened.source, opened.reader, opened.done, opened.plan)
        yield (record for _, record in worker.answer(rows))


def run(
    batch: Batch,
    answer: Answer = answer_here,
    on_start: Callable[[Progress], None] = lambda _: None,
    on_row: Callable[[Record], None] = lambda _: None,
    on_shard: Callable[[Path, int], None] = lambda _path, _rows: None,
) -> Progress:
    """Answer the rows that have no results, and write these.

    Args:
        answer: where; in this process if it is not given.
        on_start: is told when the rows have been counted.
        on_row: is told of each record.
        on_shard: is told of each file that has been written, and how many rows it has.

    Returns:
        The counts of the whole job.

    Raises:
        InputError: for an input or an output that cannot be used, ids that are not unique, results of another job, or
            those of another provider.
    """
    source = open_source(batch.input)
    spec = _complete(batch, source)
    reader = spec.reader()
    check_columns(source, spec, reader)
    with Job(batch.output, {**spec.fingerprint(), "output": batch.format}, batch.mix_providers) as job:
        shards = _shards(batch, source)
        shards.clean()
        if batch.retry_errors:
            shards.drop_failed()
        done = shards.done()
        opened = Opened(job, source, spec, reader, shards, done, plan(source, reader, done))
        progress = Progress(opened.plan.total, opened.plan.done, done.failed)
        on_start(progress)
        if progress.done < progress.total:
            with answer(opened) as records:
                collect(_told(records, on_row), shards, progress, batch.shard_rows, on_shard)
        else:  # nothing to answer, but the rows may have changed
            for _ in left(source, reader, done, opened.plan):
                pass
    return progress


def open_results(batch: Batch) -> tuple[Source, Reader, Shards]:
    """The input and the results of a job that has ended."""
    source = open_source(batch.input)
    return source, _complete(batch, source).reader(), _shards(batch, source)


def _complete(batch: Batch, source: Source) -> Spec:
    as_text = batch.format == "parquet" and source.types is None
    return dataclasses.replace(batch.spec, base=source.base, carry_as_text=as_text)


def _shards(batch: Batch, source: Source) -> Shards:
    types = schema(batch.spec.task, batch.spec.carry, source.types) if batch.format == "parquet" else None
    return Shards(batch.output, batch.format, types)


def check_columns(source: Source, spec: Spec, reader: Reader) -> None:
    """Find out before any work whether the input has the columns that are named, and prompts.

    Raises:
        InputError: if it has not.
    """
    names: Any = source.columns
    if names is None:
        first = next((cells for cells in source.read(None) if isinstance(cells, dict)), None)
        if first is None:
            return
        names = tuple(first)
    known = ", ".join(map(repr, names)) or "none"
    asked = [*spec.columns.values(), *spec.carry] if source.columns is not None else []
    if missing := [name for name in asked if name not in names]:
        raise InputError(f"the input has no column {missing[0]!r}; it has {known}")
    if reader.asks and spec.prompt is None and reader.column("prompt") not in names:
        raise InputError(
            f"the input has no column {reader.column('prompt')!r}, but {known}; give a prompt for all rows with"
            " --prompt, or name the column with --column prompt=NAME"
        )


def _told(records: Iterator[Record], on_row: Callable[[Record], None]) -> Iterator[Record]:
    for record in records:
        yield record
        on_row(record)
