"""Rows in, records out: a loaded model that many rows go through together."""

from __future__ import annotations

import dataclasses
import math
import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeAlias

import numpy as np

from ...graphs import InputError
from ..inputs import Media, Request
from ..model import VLM
from ..options import Options, resolve
from ..results import Generation, Score
from ..scheduling import Piece, Scheduler, tasks
from .readers import Readers
from .records import Record, Recorder, Task
from .rows import Question, Reader, Row

AT_ONCE = 4  #: rows that a process reads at once
#: What comes of a row.
Result: TypeAlias = "Generation | list[Score] | Exception"


@dataclass(frozen=True)
class Read:
    """A row that has been read, and the request that it is or the error."""

    row: Row
    request: tasks.Task | Exception


@dataclass(frozen=True)
class Answered:
    """A row that ran, and what came of it."""

    row: Row
    result: Result


Events: TypeAlias = "queue.SimpleQueue[Read | Answered]"


class Worker:
    """Answers rows, each as `VLM.generate` or `VLM.score` would alone.

    Threads read and resize the images of rows to come, the scheduler's first thread runs the vision encoder and its
    second the decoder. Rows begin in groups, so that short prompts run together: as many as are answered at once while
    the model waits for images, else half of them, as others end. A row leaves when it is done, so they come in another
    order.

    Args:
        vlm: the loaded model.
        reader: says what a row asks.
        recorder: makes its record.
        options: of answers; a row's own go before them.
        max_rows: answers, beams and candidates that are computed together.
        threads: how many read images.
        readers: read images in their processes, and are closed with this; None to read in these threads.
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
        readers: Readers | None = None,
    ) -> None:
        self._options: Options = options or {}
        copies = resolve(self._options, vlm.manifest.generation).copies
        rows = max(max_rows, copies, len(reader.candidates))
        self._rows, self._ahead = rows, 2 * rows + rows // 2 + threads  # few images in memory, and no wait for the next
        self._vlm, self._reader, self._recorder, self._task = vlm, reader, recorder, task
        # No row is a conversation's next turn, so no beginnings are kept; and nobody waits for a next token.
        self._scheduler = Scheduler(
            vlm, max_rows=rows, max_queue=self._ahead, prefix_memory=0, max_pause=math.inf, together=rows
        )
        self._pool = ThreadPoolExecutor(threads, "onnx-vlm reads")
        self._readers = readers
        # A process gets several rows at once: to wake this one for each would cost small models much of their time.
        self._at_once = 1 if readers is None else max(1, min(AT_ONCE, rows // 2))

    def answer(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Record]]:
        """Each row with its record, in the order in which they are done. Only so many rows are taken ahead."""
        rows = iter(rows)
        events: Events = queue.SimpleQueue()
        reading = running = 0
        group: list[Read] = []
        while True:
            while self._ahead - reading - len(group) - running >= self._at_once:
                if not (part := list(islice(rows, self._at_once))):
                    break
                self._pool.submit(self._read, part, events)
                reading += len(part)
            enough = self._rows if running < self._rows else max(1, self._rows // 2)
            if group and (len(group) >= enough or not reading):
                self._begin(group, events)
                running, group = running + len(group), []
            if not reading and not running:
                return
            match events.get():
                case Read(row, Exception() as error):
                    reading -= 1
                    yield row, self._recorder.record(row, error)
                case Read() as read:
                    reading -= 1
                    group.append(read)
                case Answered(row, result):
                    running -= 1
                    yield row, self._recorder.record(row, result)

    @property
    def arithmetic(self) -> str:
        """What the rounding of answers depends on."""
        return self._vlm.pipeline.engine.target.arithmetic

    def close(self) -> None:
        """End, whatever is running."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._readers is not None:
            self._readers.close()
        self._scheduler.close(drain=False)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, rows: Sequence[Row], events: Events) -> None:
        """Read the images of rows. Whatever fails is that row's alone."""
        asked: list[tuple[Row, Question]] = []
        for row in rows:
            try:
                asked.append((row, self._reader.question(row)))
            except Exception as error:
                events.put(Read(row, error))
        for (row, question), media in zip(asked, self._media([question.request for _, question in asked])):
            try:
                events.put(Read(row, self._as_task(question, media)))
            except Exception as error:
                events.put(Read(row, error))

    def _media(self, requests: Sequence[Request]) -> Sequence[Media | Exception]:
        """The images and videos of each request, or why they cannot be read."""
        if self._readers is not None:
            return self._readers.read([(request.images, request.videos) for request in requests])
        media: list[Media | Exception] = []
        for request in requests:
            try:
                media.append(self._vlm.pipeline.read_media(request.images, request.videos))
            except Exception as error:
                media.append(error)
        return media

    def _as_task(self, question: Question, media: Media | Exception) -> tasks.Task:
        if isinstance(media, Exception):
            raise media
        request = dataclasses.replace(question.request, media=media)
        if self._task == "score":
            return self._scheduler.task(request, question.candidates)
        return self._scheduler.task(request, pieces=False, **{**self._options, **question.options})

    def _begin(self, group: Sequence[Read], events: Events) -> None:
        """Give rows to the scheduler, which tells of their end."""

        def on_event(row: Row, event: Piece | Result) -> None:
            if not isinstance(event, Piece):
                events.put(Answered(row, event))

        self._scheduler.queue([(read.request, partial(on_event, read.row)) for read in group])


class Embedding:
    """Embeds rows one by one: a row with an image is a page, one with a prompt a query."""

    def __init__(self, vlm: VLM, reader: Reader, recorder: Recorder) -> None:
        self._vlm, self._reader, self._recorder = vlm, reader, recorder

    def answer(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Record]]:
        """Each row with its record, in their order. Whatever fails is that row's alone."""
        for row in rows:
            start = time.perf_counter()
            try:
                result: np.ndarray | Exception = self._embed(self._reader.question(row).request)
            except Exception as error:
                result = error
            record = self._recorder.record(row, result)
            if record["error"] is None:
                record["seconds"] = round(time.perf_counter() - start, 4)
            yield row, record

    def _embed(self, request: Request) -> np.ndarray:
        images, prompt = request.images, request.prompt
        if len(images) + bool(prompt) != 1 or request.videos or not isinstance(prompt, str):
            raise InputError(
                f"a row to embed has {len(images)} images, {len(request.videos)} videos and the prompt {prompt!r:.40};"
                " give one image for a page, or a prompt for a query"
            )
        (vectors,) = self._vlm.embed(images) if images else self._vlm.embed(queries=prompt)
        return vectors

    @property
    def arithmetic(self) -> str:
        """What the rounding of vectors depends on."""
        return self._vlm.pipeline.engine.target.arithmetic

    def close(self) -> None:
        """End."""

    def __enter__(self) -> Embedding:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
