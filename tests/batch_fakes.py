"""Batch jobs whose answers are made up, so that a test of what is written needs no model."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_vlm.graphs import InputError
from onnx_vlm.runtime.batch import Batch, Spec, run
from onnx_vlm.runtime.batch import shards as shards_module
from onnx_vlm.runtime.batch.job import left
from onnx_vlm.runtime.batch.progress import Progress
from onnx_vlm.runtime.batch.records import Record, Recorder
from onnx_vlm.runtime.batch.run import Opened
from onnx_vlm.runtime.results import Generation

FAILS = "bad"  #: a row with this in its prompt fails


@contextmanager
def answer_by_echo(opened: Opened) -> Iterator[Iterator[Record]]:
    """Answer each row with its prompt."""
    recorder = Recorder("generate", opened.reader, opened.spec.carry, opened.spec.carry_as_text)

    def records() -> Iterator[Record]:
        for row in left(opened.source, opened.reader, opened.done, opened.plan):
            try:
                prompt = opened.reader.question(row).request.prompt
                if FAILS in prompt:
                    raise InputError(f"the prompt {prompt} is bad")
                result = Generation(prompt, [1, 2], "stop", 3)
            except InputError as error:
                result = error
            yield recorder.record(row, result)

    yield records()


def echo(bundle: Path, rows: Path, output: Path, **options) -> Progress:
    """Run a job by `answer_by_echo`; keywords of `Spec` and `Batch` as they come."""
    of_batch = {name: options.pop(name) for name in ("format", "shard_rows", "retry_errors") if name in options}
    return run(Batch(rows, output, Spec(bundle, Path(), **options), **of_batch), answer_by_echo)


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_results(output: Path) -> dict[str, Record]:
    """All results of JSONL by their ids, of which no two are equal."""
    records = [json.loads(line) for path in output.glob("shard-*.jsonl") for line in path.open()]
    by_id = {record["id"]: record for record in records}
    assert len(by_id) == len(records)
    return by_id


def kill_at(moment: int) -> None:
    """Let this process be killed at one of the moments of its life: 3 of each file that it writes."""
    moments = iter(range(moment, -1, -1))
    replace = os.replace

    def passes() -> None:
        if next(moments) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def replaced(source: Path, target: Path) -> None:
        data = source.read_bytes()
        source.write_bytes(data[: len(data) // 2])
        passes()  # half of the file is written
        source.write_bytes(data)
        passes()  # it is whole and has not got its name
        replace(source, target)
        passes()  # it has got its name

    shards_module.os.replace = replaced


if __name__ == "__main__":
    bundle, rows, output, moment, retry = sys.argv[1:]
    kill_at(int(moment))
    echo(Path(bundle), Path(rows), Path(output), shard_rows=3, retry_errors=retry == "retry")
