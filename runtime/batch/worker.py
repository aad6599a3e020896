"""Rows in, records out: a loaded model that many rows go through together."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeAlias

from ..model import VLM
from ..options import Options, resolve
from ..results import Generation, Score
from ..scheduling import Piece, Scheduler
from .records import Record, Recorder, Task
from .rows import Reader, Row

#: What comes of a row.
Result: TypeAlias = "Generation | list[Score] | Exception"


class Worker:
    """Answers rows, each as `VLM.generate` or `VLM.score` would alone.

    Threads read and resize the images of rows to come, the scheduler's first thread runs the vision encoder and its
    second the decoder. A row leaves when it is done, so they come in another order.

    Args:
        vlm: the loaded model.
        reader: says what a row asks.
        recorder: makes its record.
        options: of answers; a row's own go before them.
        max_rows: answers, beams and candidates that are computed together.
        threads: how many read images.
    """

    def __init__(
        self,
        vlm: VLM,
        reader: Reader,
        recorder: Recorder,
        task: Task = "generate",
        options: Options | None = None,
        max_rows: int = 8,
        threads: int = 2,
    ) -> None:
        self._options: Options = options or {}
        copies = resolve(self._options, vlm.manifest.generation).copies
        rows = max(max_rows, copies, len(reader.candidates))
        self._ahead = 2 * rows + threads  # enough that the decoder never waits, and few images in memory
        self._vlm, self._reader, self._recorder, self._task = vlm, reader, recorder, task
        # No row is a conversation's next turn, so no beginnings are kept.
        self._scheduler = Scheduler(vlm, max_rows=rows, max_queue=self._ahead, prefix_memory=0)
        self._pool = ThreadPoolExecutor(threads, "onnx-vlm reads")

    def answer(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Record]]:
        """Each row with its record, in the order in which they are done. Only so many rows are taken ahead."""
        rows = iter(rows)
        done: queue.SimpleQueue[tuple[Row, Result]] = queue.SimpleQueue()
        running = 0
        while True:
            for row in islice(rows, self._ahead - running):
                self._pool.submit(self._ask, row, done)
                running += 1
            if not running:
                return
            row, result = done.get()
            running -= 1
            yield row, self._recorder.record(row, result)

    def close(self) -> None:
        """End, whatever is running."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._scheduler.close(drain=False)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, row: Row, done: queue.SimpleQueue[tuple[Row, Result]]) -> None:
        """Read a row's images, and give it to the scheduler. Whatever fails is this row's alone."""

        def on_event(event: Piece | Result) -> None:
            if not isinstance(event, Piece):
                done.put((row, event))

        try:
            question = self._reader.question(row)
            request = question.request
            media = self._vlm.pipeline.read_media(request.images, request.videos)
            request = dataclasses.replace(request, media=media)
            if self._task == "score":
                self._scheduler.submit_score(request, question.candidates, on_event)
            else:
                self._scheduler.submit(request, on_event, pieces=False, **{**self._options, **question.options})
        except Exception as error:
            done.put((row, error))
