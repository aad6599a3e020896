"""Requests in, answers out, many at once: the queue, and the threads that work on it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Unpack

from ...graphs import InputError
from ..inputs import Request
from ..model import VLM
from ..options import Options, resolve
from .answer_stream import AnswerStream, OnEvent
from .batch import Batch
from .capacity import check_numbers, row_tokens
from .errors import ClosedError, QueueFullError
from .pace import Pace
from .prefixes import Prefixes
from .requests import Prepared, Waiting, cancelled, prepare
from .state import State
from .tasks import Generate, ScoreCandidates, Task


class Scheduler:
    """Answers requests as they come, together, each as `VLM.generate` would alone.

    One thread prepares requests in their order: it reads images, encodes prompts and runs the vision encoder. Another
    runs the decoder: prompts, each alone or short ones at once, and between their parts a step of all answers. The
    memory of the KV cache is reserved here, before the first request: `max_rows` rows. On the host it is taken as rows
    are written.

    Args:
        vlm: the loaded model. It may be used on its own at the same time.
        max_rows: answers, beams and candidates that are computed together.
        max_queue: requests that wait for rows; one more is refused.
        max_tokens: tokens of prompt and answer of one row. None for as many as the model has positions, or as
            `Limits.max_memory` has room for; half of what is free to this process where that is None.
        prefix_memory: bytes for the KV of earlier conversations, so that a next turn computes what is new only; 0 for
            none. Models whose prompt is bidirectional keep none.
        max_pause: seconds that running answers wait for a part of a new prompt, where the model allows parts. A part
            has at least 4 tokens, however long they take. `math.inf` for parts of 512.
        together: requests that are prepared, and begin if their prompts are short, at once: more answers a second, the
            first of which wait for the others.

    Raises:
        InputError: for an invalid number, or a KV cache that is larger than the memory.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        max_rows: int = 8,
        max_queue: int = 64,
        max_tokens: int | None = None,
        prefix_memory: int = 1 << 28,
        max_pause: float = 0.25,
        together: int = 1,
    ) -> None:
        tokens = {} if max_tokens is None else {"max_tokens": max_tokens}
        check_numbers(max_rows=max_rows, max_queue=max_queue, together=together, **tokens)
        self._vlm, self._max_rows, self._max_queue = vlm, max_rows, max_queue
        self._max_tokens = row_tokens(vlm, max_rows, max_tokens)
        self._prefixes = Prefixes(prefix_memory)
        causal, pace = vlm.manifest.causal, Pace(max_pause)
        self._batch = Batch(vlm.pipeline.engine, max_rows, self._max_tokens, causal, self._prefixes, pace, together)
        self._together = together
        self._changed = threading.Condition()
        self._waiting: deque[Waiting] = deque()
        self._preparing: list[Waiting] = []
        self._ready: deque[Prepared] = deque()
        self._closed = False
        works = {"prepares": self._prepare, "decodes": self._decode}
        self._threads = [
            threading.Thread(target=work, name=f"onnx-vlm {name}", daemon=True) for name, work in works.items()
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, request: Request, on_event: OnEvent | None = None, pieces: bool = True, **options: Unpack[Options]
    ) -> AnswerStream:
        """Queue a request.

        Args:
            request: a prompt, and images and videos about which it is. They are read later, and what is wrong with
                them ends the stream.
            on_event: told of each piece, and at last of the answer or the error, in a thread that waits for it.
            pieces: whether there are pieces, or the end alone.
            options: as for `VLM.generate`.

        Raises:
            InputError: for an invalid option, or more answers than there are rows.
            QueueFullError: if as many requests wait as may.
            ClosedError: after `close`.
        """
        return self.queue([(self.task(request, pieces=pieces, **options), on_event)])[0]

    def submit_score(
        self, request: Request, candidates: Sequence[str], on_event: OnEvent | None = None
    ) -> AnswerStream:
        """Queue a request for the scores of given answers, as `VLM.score` gives them; raises what `submit` does."""
        return self.queue([(self.task(request, candidates), on_event)])[0]

    def task(
        self,
        request: Request,
        candidates: Sequence[str] | None = None,
        pieces: bool = True,
        **options: Unpack[Options],
    ) -> Task:
        """A request for `queue`: for an answer, or for the scores of candidates. Raises an InputError as `submit`."""
        pipeline, settings = self._vlm.pipeline, resolve(options, self._vlm.manifest.generation)
        task: Task = Generate(pipeline, request, settings, pieces)
        if candidates is not None:
            task = ScoreCandidates(pipeline, request, candidates)
        if task.copies > self._max_rows:
            raise InputError(
                f"the request has {task.copies} rows, the scheduler {self._max_rows} (max_rows); a row is an answer, a"
                " beam or a candidate: ask for fewer of them"
            )
        return task

    def queue(self, tasks: Sequence[tuple[Task, OnEvent | None]]) -> list[AnswerStream]:
        """Queue requests at once, so that as many of them as may are prepared together.

        Raises:
            QueueFullError, ClosedError: as `submit`; none of them is queued.
        """
        requests = [Waiting(task, AnswerStream(on_event)) for task, on_event in tasks]
        with self._changed:
            if self._closed:
                raise ClosedError("the scheduler is closed and takes no more requests")
            self._drop_cancelled()
            if self._queued + len(requests) > self._max_queue:
                raise QueueFullError(f"{self._max_queue} requests wait, as many as may; try again later")
            self._waiting.extend(requests)
            self._changed.notify_all()
        return [request.stream for request in requests]

    def state(self) -> State:
        """What the scheduler is doing."""
        engine, images, prefixes = self._vlm.pipeline.engine, self._vlm.pipeline.image_embeddings, self._prefixes
        with self._changed:
            return State(
                queued=self._queued,
                running=self._batch.running,
                rows=self._batch.rows,
                kv_bytes=engine.kv_bytes(self._max_rows, self._max_tokens),
                kv_used_bytes=self._batch.tokens_held * engine.saved_bytes(1, 1),
                prefix_bytes=prefixes.nbytes,
                prefix_hits=prefixes.hits,
                prefix_misses=prefixes.misses,
                prefix_tokens=prefixes.tokens,
                image_hits=images.hits,
                image_misses=images.misses,
                steps=self._batch.steps,
                tokens=self._batch.tokens,
            )

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and end: after those that have been taken, or with `drain` False at once.

        Args:
            timeout: seconds after which those that are left are cancelled; None for no limit.
        """
        with self._changed:
            self._closed = True
            if not drain:
                self._cancel_all()
            self._changed.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0, end - time.monotonic()))
        with self._changed:
            self._cancel_all()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    @property
    def _queued(self) -> int:
        return len(self._waiting) + len(self._preparing) + len(self._ready)

    def _prepare(self) -> None:
        """What the first thread does: prepare requests, about as many ahead as there are rows."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or (self._waiting and len(self._ready) < self._max_rows))
                if not self._waiting:
                    return
                count = min(self._together, len(self._waiting))
                self._preparing = [self._waiting.popleft() for _ in range(count)]
            prepared = prepare(self._vlm.pipeline, self._preparing, self._max_tokens)
            with self._changed:
                self._preparing = []
                self._ready.extend(prepared)
                self._changed.notify_all()

    def _decode(self) -> None:
        """What the second thread does: run what is ready."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batch.busy or self._ready or self._done)
                self._drop_cancelled()
                begins = [self._ready.popleft() for _ in range(self._batch.accepts(list(self._ready)))]
                if begins:  # there is room for others that are prepared, or nothing is left to prepare
                    self._changed.notify_all()
                elif self._done and not self._batch.busy:
                    return
            try:
                if begins:
                    self._batch.begin(begins)
                self._batch.advance()
            except Exception as error:  # the device or the memory: all that runs is lost, what comes is not
                self._batch.fail(error)
                for request in begins:
                    request.stream.end(error)

    @property
    def _done(self) -> bool:
        """Whether nothing is queued and nothing will be."""
        return self._closed and not self._queued

    def _drop_cancelled(self) -> None:
        """End queued requests that were cancelled."""
        dropped = [request for request in (*self._waiting, *self._ready) if request.stream.cancelled]
        if not dropped:
            return
        for request in dropped:
            request.stream.end(cancelled())
        self._changed.notify_all()
        self._waiting = deque(request for request in self._waiting if not request.stream.cancelled)
        self._ready = deque(request for request in self._ready if not request.stream.cancelled)

    def _cancel_all(self) -> None:
        for request in [*self._waiting, *self._preparing, *self._ready]:
            request.stream.cancel()
        self._batch.cancel()
        self._drop_cancelled()
