"""The files of results: each is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ...graphs import InputError
from .packages import pyarrow
from .records import Record, for_json

Format: TypeAlias = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")
RESULTS = "shard-[0-9]*"  #: the names of the files
UNFINISHED = ".part"  #: ends the name of a file that is being written


def key(id: str) -> bytes:
    """What stands for an id, so that many take little memory. It ends in no zero, which NumPy would take away."""
    return hashlib.blake2b(id.encode(), digest_size=15).digest() + b"\1"


@dataclass(frozen=True)
class Done:
    """The rows that have results.

    Attributes:
        keys: of their ids, sorted, as fixed-length bytes.
        digests: of the rows as they were read; 0 for rows that failed.
        failed: how many rows failed, by the kind of their error.
    """

    keys: np.ndarray
    digests: np.ndarray
    failed: Counter[str]

    def find(self, id: str) -> int | None:
        """The digest of a row that has a result, or None."""
        row_key = np.bytes_(key(id))
        index = int(np.searchsorted(self.keys, row_key))
        return int(self.digests[index]) if index < len(self.keys) and self.keys[index] == row_key else None


class Shards:
    """The results of a job: numbered files in a folder.

    Args:
        schema: of Parquet; None for JSONL.
    """

    def __init__(self, folder: Path, output: Format, schema: Any = None) -> None:
        self.folder, self._suffix, self._schema = folder, f".{output}", schema

    def paths(self) -> list[Path]:
        """The files, in their order."""
        return sorted(self.folder.glob(f"{RESULTS}{self._suffix}"), key=_number)

    def read(self, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """All results; of these columns alone, where that spares work."""
        for path in self.paths():
            yield from self._read(path, columns)

    def done(self) -> Done:
        """Which rows have results.

        Raises:
            InputError: if a file is damaged, or a row has two results.
        """
        keys, digests, failed = bytearray(), array("Q"), Counter[str]()
        for record in self.read(("id", "input", "error_kind")):
            keys += key(record["id"])
            digests.append(0 if record["error_kind"] else int(record["input"], 16))
            if record["error_kind"]:
                failed[record["error_kind"]] += 1
        row_keys = np.frombuffer(bytes(keys), "S16")
        order = np.argsort(row_keys, kind="stable")
        if len(np.unique(row_keys)) < len(row_keys):
            raise InputError(f"{self.folder} has two results of one row; it was changed: give another folder")
        return Done(row_keys[order], np.array(digests, np.uint64)[order], failed)

    def clean(self) -> None:
        """Remove what a job that was killed has not finished."""
        for path in self.folder.glob(f"*{UNFINISHED}"):
            path.unlink()

    def drop_failed(self) -> int:
        """Take the results of rows that failed out, so that these rows are answered anew; how many there were."""
        dropped = 0
        for path in self.paths():
            records = list(self._read(path, None))
            successes = [record for record in records if record["error"] is None]
            dropped += len(records) - len(successes)
            if not successes:
                path.unlink()
            elif len(successes) < len(records):
                self.write(path, successes)
        return dropped

    def next(self) -> Path:
        """The name of the next file."""
        paths = self.paths()
        return self.folder / f"shard-{_number(paths[-1]) + 1 if paths else 0:06}{self._suffix}"

    def write(self, path: Path, records: Sequence[Record]) -> None:
        """Write a file."""
        write_whole(path, lambda unfinished: self._write_records(unfinished, records))

    def _write_records(self, path: Path, records: Sequence[Record]) -> None:
        if self._schema is not None:
            table = pyarrow("pyarrow", "writing Parquet").Table.from_pylist(list(records), self._schema)
            pyarrow("pyarrow.parquet", "writing Parquet").write_table(table, path)
            return
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, default=for_json) + "\n")

    def _read(self, path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
        try:
            yield from self._records(path, columns)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"the results in {path} cannot be read: {error}; move the file away") from None

    def _records(self, path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
        if self._schema is None:
            with path.open("rb") as file:
                yield from map(json.loads, file)
            return
        with pyarrow("pyarrow.parquet", "reading Parquet").ParquetFile(path) as file:
            for batch in file.iter_batches(256, columns=None if columns is None else list(columns)):
                yield from batch.to_pylist()


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let a file appear only when all of it is on the disk: whoever is killed before leaves `path` as it was."""
    unfinished = path.with_name(path.name + UNFINISHED)
    write(unfinished)
    _sync(unfinished)
    os.replace(unfinished, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no such thing for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))
