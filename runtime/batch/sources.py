"""The rows of an input, one after the other: a folder of images, JSONL, CSV, Parquet, or a saved dataset."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...graphs import InputError
from ..images.reading import SUFFIXES
from .packages import pyarrow

#: A row as it was read: its cells by column, or why it cannot be read.
Cells: TypeAlias = "dict[str, Any] | InputError"
AT_ONCE = 32  #: rows of a columnar file that are in memory together; they may have images in them
csv.field_size_limit(1 << 30)  # a cell may hold an encoded image


@dataclass(frozen=True)
class Source:
    """An input.

    Attributes:
        base: the folder that relative paths in it start from.
        read: yields the rows anew at each call; of the given columns alone where that spares work, None for all.
        columns: the names of the columns; None if each row has its own.
        types: the columns' types as pyarrow has them, where the input says.
    """

    base: Path
    read: Callable[[Collection[str] | None], Iterator[Cells]]
    columns: tuple[str, ...] | None = None
    types: Any = None


def open_source(path: Path) -> Source:
    """An input by its path.

    Raises:
        InputError: if it does not exist, or is of another kind.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"there is no input {path}; give a folder of images, or a file: {', '.join(FILES)}")
    if path.suffix.lower() not in FILES:
        raise InputError(f"the input {path} is of no known kind; give a folder of images, or one of {', '.join(FILES)}")
    return FILES[path.suffix.lower()](path)


def _open_folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(part.name for part in path.iterdir() if part.is_dir()))
        raise InputError(f"{path} holds several splits; give one of them, such as {path.name}/NAME with NAME {splits}")
    if (path / "state.json").is_file():
        return _open_dataset(path)
    return Source(path, lambda _: _images(path, ""), ("id", "image"))


def _images(folder: Path, prefix: str) -> Iterator[Cells]:
    """The images of a folder and those below it, by their names."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in names:
        if is_folder:
            yield from _images(folder / name, f"{prefix}{name}/")
        elif Path(name).suffix.lower() in SUFFIXES:
            yield {"id": f"{prefix}{name}", "image": f"{prefix}{name}"}


def _open_jsonl(path: Path) -> Source:
    def read(_: Collection[str] | None) -> Iterator[Cells]:
        with path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    yield _parsed(line, line_number)

    return Source(path.parent, read)


def _parsed(line: bytes, number: int) -> Cells:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"line {number} is not JSON: {error}")
    return cells if isinstance(cells, dict) else InputError(f"line {number} is {cells!r:.80}; give a JSON object")


def _open_csv(path: Path) -> Source:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        columns = next(csv.reader(file), [])

    def read(_: Collection[str] | None) -> Iterator[Cells]:
        # Bytes that are not UTF-8 are kept, so that they fail in the row that has them.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.DictReader(file)
            for cells in lines:
                if None in cells:
                    yield InputError(f"line {lines.line_num} has more cells than the {len(columns)} columns")
                else:
                    yield {name: cell or None for name, cell in cells.items()}

    return Source(path.parent, read, tuple(columns))


def _open_parquet(path: Path) -> Source:
    parquet = pyarrow("pyarrow.parquet", "Parquet")
    schema, rows = _readable(path, lambda: (parquet.read_schema(path), parquet.read_metadata(path).num_rows))

    def read(only: Collection[str] | None) -> Iterator[Cells]:
        if only is not None and not only:
            yield from ({} for _ in range(rows))
            return
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE, columns=None if only is None else list(only)):
                yield from batch.to_pylist()

    return Source(path.parent, read, tuple(schema.names), schema)


def _open_dataset(folder: Path) -> Source:
    """What `datasets.Dataset.save_to_disk` wrote."""
    arrow = pyarrow("pyarrow", "a saved dataset")
    ipc = pyarrow("pyarrow.ipc", "a saved dataset")
    state = _readable(folder, lambda: json.loads((folder / "state.json").read_text()))
    if state.get("_indices_data_files"):
        raise InputError(f"{folder} was saved with its rows in another order; call flatten_indices() and save it again")
    files = [folder / entry["filename"] for entry in state.get("_data_files", ())]

    def read(only: Collection[str] | None) -> Iterator[Cells]:
        for path in files:
            with arrow.memory_map(str(path)) as mapped, ipc.open_stream(mapped) as stream:
                for batch in stream:
                    for start in range(0, len(batch), AT_ONCE):
                        part = batch.slice(start, AT_ONCE)
                        yield from (part if only is None else part.select(list(only))).to_pylist()

    def schema() -> Any:
        with arrow.memory_map(str(files[0])) as mapped, ipc.open_stream(mapped) as stream:
            return stream.schema

    types = _readable(folder, schema)
    return Source(folder, read, tuple(types.names), types)


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    """What is read from a file; an InputError if it is damaged."""
    try:
        return read()
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"the input {path} cannot be read: {error}") from None


FILES: dict[str, Callable[[Path], Source]] = {
    ".jsonl": _open_jsonl,
    ".ndjson": _open_jsonl,
    ".csv": _open_csv,
    ".parquet": _open_parquet,
}
