"""Jobs on a cluster of Ray: rows are answered by actors anywhere, results are written here."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...graphs import GenerationError, InputError
from .job import left
from .records import Record
from .rows import Reader
from .run import Opened
from .sources import open_source
from .spec import Spec

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE = 32  #: rows that an actor gets at once
RANGES = 4  #: parts of the input for each worker


class Actor:
    """Answers rows of a job. Rows and records are pickled: they may hold what no column of a table can."""

    def __init__(self, spec: Spec, checksum: str) -> None:
        self._worker = spec.here(checksum).worker()

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        rows = [pickle.loads(row) for row in batch["row"].to_pylist()]
        records = [pickle.dumps(record) for _, record in self._worker.answer(rows)]
        arithmetic = [self._worker.arithmetic] * len(records)
        return pa.table({"record": pa.array(records, pa.binary()), "arithmetic": pa.array(arithmetic, pa.string())})


def on_ray(
    input: Path, address: str | None = None, workers: int = 1
) -> Callable[[Opened], AbstractContextManager[Iterator[Record]]]:
    """What answers the rows of a job on a cluster.

    Args:
        input: the input, which the cluster's machines see by the same path, as they do a bundle that is a folder.
        address: of the cluster; None for one of this machine, made for the job.
        workers: the most actors; there is one at the beginning, and Ray adds others as it has room.

    Raises:
        InputError: if Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"the engine ray needs Ray ({error}); install it: pip install 'onnx-vlm[ray]'") from None

    @contextmanager
    def answer(opened: Opened) -> Iterator[Iterator[Record]]:
        started = not ray.is_initialized()
        if started:
            alone = {"include_dashboard": False} if address is None else {}
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
            except Exception as error:  # Ray raises errors of many kinds
                raise GenerationError(
                    f"Ray does not start: {error}; check the address of the cluster, or start the job again"
                ) from error
        try:
            yield _records(input.resolve(), opened, workers)
        except ray.exceptions.RayError as error:
            raise GenerationError(
                f"the cluster cannot go on: {error}; what is done is written: start the job again"
            ) from error
        finally:
            if started:
                ray.shutdown()

    return answer


def _records(input: Path, opened: Opened, workers: int) -> Iterator[Record]:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False  # the job has its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    spec = opened.spec
    gpu = spec.where.provider in ("cuda", "tensorrt")
    cpus = spec.where.threads or (1 if gpu else max(1, (os.cpu_count() or 1) // workers))
    parts = _parts(opened, workers)
    reader = dataclasses.replace(opened.reader, fetch=None)  # connections cannot be sent, and reading needs none
    dataset = (
        ray.data.from_items([{"ranges": part} for part in parts], override_num_blocks=len(parts))
        .flat_map(lambda item: _read(input, reader, item["ranges"]), num_cpus=0.1)
        .repartition(target_num_rows_per_block=AT_ONCE)
        .map_batches(
            Actor,
            fn_constructor_args=(spec, spec.checksum()),
            batch_size=AT_ONCE,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=cpus,
            num_gpus=1 if gpu else None,
        )
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for arithmetic in table["arithmetic"].unique().to_pylist():
            opened.job.note_arithmetic(arithmetic)
        for record in table["record"].to_pylist():
            yield pickle.loads(record)


def _parts(opened: Opened, workers: int) -> list[list[list[int]]]:
    """The indices of the rows that are left, as ranges, in parts of about equal size."""
    size_of_part = max(AT_ONCE, -(-(opened.plan.total - opened.plan.done) // (RANGES * workers)))
    parts: list[list[list[int]]] = []
    size = size_of_part
    for index in (row.index for row in left(opened.source, opened.reader, opened.done, opened.plan)):
        if size == size_of_part:
            parts.append([])
            size = 0
        if parts[-1] and parts[-1][-1][1] == index:
            parts[-1][-1][1] = index + 1
        else:
            parts[-1].append([index, index + 1])
        size += 1
    return parts


def _read(input: Path, reader: Reader, ranges: Any) -> Iterator[dict[str, bytes]]:
    """The rows of a part."""
    rows = reader.rows(open_source(input).read(None))
    position = 0
    for start, stop in ranges:
        for row in islice(rows, int(start) - position, int(stop) - position):
            yield {"row": pickle.dumps(row)}
        position = int(stop)
