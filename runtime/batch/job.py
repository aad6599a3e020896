"""A job: a folder with its results, which is gone on with where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np

from ...graphs import InputError
from .progress import Progress
from .records import Record
from .rows import Reader, Row
from .shards import RESULTS, Done, Shards, key, write_whole
from .sources import Source

MANIFEST, LOCK = "job.json", ".lock"
ARITHMETIC = "provider"  #: in the manifest, what rows were answered by


class Job:
    """The folder of a job, held by one process at a time.

    Args:
        folder: is made if it does not exist.
        fingerprint: all that answers depend on but the rows: bundle, task, options, prompt. A folder with results of
            another fingerprint is refused.
        mix: let results be of several providers.

    Raises:
        InputError: if the folder is another job's, is in use, or holds something else.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], mix: bool = False) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder for the results")
        if (
            folder.is_dir()
            and not (folder / MANIFEST).exists()
            and set(os.listdir(folder)) - {LOCK, f"{MANIFEST}.part"}
        ):
            raise InputError(f"{folder} is not empty and holds no job; give a new folder for the results")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._mix, self._arithmetic = folder, mix, list[str]()
        self._lock = (folder / LOCK).open("a")
        try:
            _lock(self._lock.fileno(), folder)
            self._fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint, default=str))
            self._check()
        except BaseException:
            self._lock.close()
            raise

    def note_arithmetic(self, arithmetic: str) -> None:
        """Note what rows are answered by, before their results are written.

        Args:
            arithmetic: what the rounding of answers depends on: the provider and its options.

        Raises:
            InputError: if there are results of others, and they may not be mixed.
        """
        if arithmetic in self._arithmetic:
            return
        if self._arithmetic and not self._mix:
            known = " and ".join(self._arithmetic)
            raise InputError(
                f"{self.folder} has results of the provider {known}, and this is {arithmetic}, which rounds otherwise,"
                f" so that answers may differ; give --provider {self._arithmetic[0].partition(' ')[0]} and its options,"
                " or another folder, or --mix-providers to have both"
            )
        self._arithmetic.append(arithmetic)
        self._write()

    def _write(self) -> None:
        text = json.dumps({**self._fingerprint, ARITHMETIC: self._arithmetic}, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.folder / MANIFEST, lambda unfinished: unfinished.write_text(text, encoding="utf-8") and None)

    def _check(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists() or not any(self.folder.glob(RESULTS)):
            self._write()
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            self._arithmetic = [str(name) for name in known.pop(ARITHMETIC, ())]
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}; give another folder") from None
        fingerprint = self._fingerprint
        for name in dict.fromkeys([*fingerprint, *known]):
            if known.get(name) != fingerprint.get(name):
                raise InputError(
                    f"{self.folder} has results of another job: its {name} is {_short(known.get(name))}, this job's is"
                    f" {_short(fingerprint.get(name))}; give another folder, or the same {name}"
                )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.close()


@dataclass(frozen=True)
class Plan:
    """What is left of a job.

    Attributes:
        total: rows of the input.
        done: of them, those that have results.
    """

    total: int
    done: int


def plan(source: Source, reader: Reader, done: Done) -> Plan:
    """Count the rows of an input, those that have results among them.

    Raises:
        InputError: if two rows have the same id.
    """
    column = reader.column("id")
    named = source.columns is None or column in source.columns
    keys = bytearray()
    for index, cells in enumerate(source.read([column] if named else [])):
        keys += key(reader.id(cells, index))
    sorted_keys = np.sort(np.frombuffer(bytes(keys), "S16"))
    twice = sorted_keys[1:][sorted_keys[1:] == sorted_keys[:-1]]
    if len(twice):
        ids = (reader.id(cells, index) for index, cells in enumerate(source.read([column])))
        id = next(id for id in ids if np.bytes_(key(id)) == twice[0])
        raise InputError(
            f"two rows of the input have the id {id!r:.80}; ids tell results apart: give each row its own, or no ids,"
            " and the row's index is its id"
        )
    return Plan(len(sorted_keys), int(np.isin(sorted_keys, done.keys).sum()))


def left(source: Source, reader: Reader, done: Done, plan: Plan) -> Iterator[Row]:
    """The rows that have no results. Those that the input has got since the plan are left for the next time.

    Raises:
        InputError: if a row is another one than when it was answered.
    """
    for row in islice(reader.rows(source.read(None)), plan.total):
        digest = done.find(row.id)
        if digest is None:
            yield row
        elif digest not in (0, row.digest):
            raise InputError(
                f"the row {row.id!r:.80} of the input is not what it was when it was answered; an input may grow, but"
                " not change: give another folder for the results"
            )


def collect(
    records: Iterable[Record],
    shards: Shards,
    progress: Progress,
    shard_rows: int,
    on_shard: Callable[[Path, int], None],
) -> None:
    """Write records as they come, a file for `shard_rows` of them, or for what has come in `SHARD_SECONDS`.

    What has come is written also if the records end with an error, or the user stops them.
    """
    waiting: list[Record] = []
    path, last = shards.next(), monotonic()

    def commit() -> None:
        nonlocal path, last
        if waiting and not path.exists():  # it exists if this was interrupted when the file had been written
            shards.write(path, waiting)
            on_shard(path, len(waiting))
        waiting.clear()
        path, last = shards.next(), monotonic()

    try:
        for record in records:
            waiting.append(record)
            progress.add(record)
            if len(waiting) >= shard_rows or monotonic() - last > SHARD_SECONDS:
                commit()
    finally:
        commit()


SHARD_SECONDS = 300


def _lock(descriptor: int, folder: Path) -> None:
    """Hold a folder until this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing keeps a second job away
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"another job writes to {folder}; wait for its end, or give another folder") from None


def _short(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.300}"
