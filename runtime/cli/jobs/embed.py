"""The command `embed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ....graphs import InputError
from .. import flags
from ..console import messages

if TYPE_CHECKING:
    import numpy as np

FORMATS = (".npz", ".parquet")


def embed(
    bundle: flags.Bundle,
    images: Annotated[
        list[Path] | None,
        typer.Argument(parser=flags.parse_path, metavar="[IMAGE]...", help="The pages.", show_default=False),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=flags.parse_path, metavar="PATH", help="A .npz or .parquet file to write."
        ),
    ],
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A query; once for each.", callback=flags.check_texts),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(parser=flags.parse_path, metavar="PATH", help="A text file with a query a line.")
    ] = None,
    pool_factor: Annotated[int, typer.Option(metavar="N", help="Leave one of so many vectors of a page.")] = 1,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="float32, float16 or int8.")] = "float32",
    where: flags.Where,
) -> None:
    """Write the vectors of pages, or of queries, to a file.

    An .npz file has `ids` (the paths or texts), `tokens` (how many vectors each has) and `vectors`, one after another.
    A .parquet file has a row for each, with the columns `id` and `vectors`.
    """
    _check_output(output)
    texts = [*(query or []), *(_lines(queries) if queries is not None else [])]
    if bool(images) == bool(texts):
        raise InputError("give either images, or queries with --query or --queries")
    vlm = flags.load(bundle, where, None)
    with messages.status("embed"):
        if images:
            vectors = vlm.embed(images, pool_factor=pool_factor, dtype=dtype)
        else:
            vectors = vlm.embed(queries=texts, pool_factor=pool_factor, dtype=dtype)
    _write(output, [*map(str, images or []), *texts], vectors)
    count = sum(map(len, vectors))
    kind = "pages" if images else "queries"
    size = f"{len(vectors)} {kind}, {count} vectors of {vectors[0].shape[1]} numbers"
    messages.print(f"wrote [bold]{escape(str(output))}[/]: {size}", soft_wrap=True)


def _check_output(path: Path) -> None:
    """Find out before the model runs whether a file can be written to `path`."""
    from ...batch.packages import pyarrow

    if path.suffix not in FORMATS:
        raise InputError(f"--output is {path}; give a file that ends in {' or '.join(FORMATS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--output is {path}; give a file in a folder that exists")
    if path.suffix == ".parquet":
        pyarrow("pyarrow.parquet", "writing Parquet")


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}; save it as UTF-8") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} has no query; write one on each line")
    return found


def _write(path: Path, ids: Sequence[str], vectors: Sequence[np.ndarray]) -> None:
    """Write the file; it appears when it is whole."""
    import numpy as np

    from ...batch.shards import UNFINISHED, write_whole

    tokens = np.array([len(rows) for rows in vectors])
    joined = np.concatenate(vectors)

    def write(unfinished: Path) -> None:
        if path.suffix == ".parquet":
            _write_parquet(unfinished, ids, tokens, joined)
            return
        with unfinished.open("wb") as file:  # NumPy would end a path's name in .npz
            np.savez(file, ids=np.array(ids), tokens=tokens, vectors=joined)

    try:
        write_whole(path, write)
    except BaseException:
        path.with_name(path.name + UNFINISHED).unlink(missing_ok=True)
        raise


def _write_parquet(path: Path, ids: Sequence[str], tokens: np.ndarray, joined: np.ndarray) -> None:
    import numpy as np

    from ...batch.packages import pyarrow

    arrow: Any = pyarrow("pyarrow", "writing Parquet")
    rows = arrow.FixedSizeListArray.from_arrays(arrow.array(joined.reshape(-1)), joined.shape[1])
    ends = arrow.array(np.concatenate([[0], np.cumsum(tokens)]), arrow.int32())
    table = arrow.table({"id": list(ids), "vectors": arrow.ListArray.from_arrays(ends, rows)})
    pyarrow("pyarrow.parquet", "writing Parquet").write_table(table, path)
