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
from .batch import Batch, Prepared, cancelled
from .capacity import check_numbers, row_tokens
from .errors import ClosedError, QueueFullError
from .pace import Pace
from .prefixes import Prefixes
from .state import State
from .tasks import Generate, ScoreCandidates, Task


class Scheduler:
    """Answers requests as they come, together, each as `VLM.generate` would alone.

    One thread prepares requests in their order: it reads images, encodes prompts and runs the vision encoder. Another
    runs the decoder: prompts, one after the other, and between their parts a step of all answers. The memory of the KV
    cache is reserved here, before the first request: `max_rows` rows. On the host it is taken as rows are written.

    Args:
        vlm: the loaded model. It may be used on its own at the same time.
        max_rows: answers, beams and candidates that are computed together.
        max_queue: requests that wait for rows; one more is refused.
        max_tokens: tokens of prompt and answer of one row. None for as many as the model has positions, or as
            `Limits.max_memory` has room for; half of what is free to this process where that is None.
        prefix_memory: bytes for the KV of earlier conversations, so that a next turn computes what is new only; 0 for
            none. Models whose prompt is bidirectional keep none.
        max_pause: seconds that running answers wait for a part of a new prompt, where the model allows parts. A part
            has at least 16 tokens, however long they take.

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
    ) -> None:
        check_numbers(max_rows=max_rows, max_queue=max_queue)
        if max_tokens is not None:
            check_numbers(max_tokens=max_tokens)
        self._vlm, self._max_rows, self._max_queue = vlm, max_rows, max_queue
        self._max_tokens = row_tokens(vlm, max_rows, max_tokens)
        self._prefixes = Prefixes(prefix_memory)
        self._batch = Batch(
            vlm.pipeline.engine, max_rows, self._max_tokens, vlm.manifest.causal, self._prefixes, Pace(max_pause)
        )
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Task, AnswerStream]] = deque()
        self._preparing: AnswerStream | None = None
        self._ready: deque[Prepared] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=target, name=f"onnx-vlm {name}", daemon=True)
            for name, target in (("prepares", self._prepare), ("decodes", self._decode))
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
            on_event: told of each piece, and at last of the answer or the error, in a thread of the scheduler, which
                waits for it.
            pieces: whether there are pieces, or the end alone.
            options: as for `VLM.generate`.

        Raises:
            InputError: for an invalid option, or more answers than there are rows.
            QueueFullError: if as many requests wait as may.
            ClosedError: after `close`.
        """
        pipeline = self._vlm.pipeline
        return self._queue(
            Generate(pipeline, request, resolve(options, pipeline.manifest.generation), pieces), on_event
        )

    def submit_score(
        self, request: Request, candidates: Sequence[str], on_event: OnEvent | None = None
    ) -> AnswerStream:
        """Queue a request for the scores of given answers, as `VLM.score` gives them: the stream's `result()`.

        Raises:
            InputError, QueueFullError, ClosedError: as `submit`.
        """
        return self._queue(ScoreCandidates(self._vlm.pipeline, request, candidates), on_event)

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
        """Take no more requests, and end.

        Args:
            drain: answer those that have been taken first; if not, they are cancelled.
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
        return len(self._waiting) + (self._preparing is not None) + len(self._ready)

    def _queue(self, task: Task, on_event: OnEvent | None) -> AnswerStream:
        if task.copies > self._max_rows:
            raise InputError(
                f"the request has {task.copies} rows, the scheduler {self._max_rows} (max_rows); a row is an answer, a"
                " beam or a candidate: ask for fewer of them"
            )
        stream = AnswerStream(on_event)
        with self._changed:
            if self._closed:
                raise ClosedError("the scheduler is closed and takes no more requests")
            self._drop_cancelled()
            if self._queued >= self._max_queue:
                raise QueueFullError(f"{self._max_queue} requests wait, as many as may; try again later")
            self._waiting.append((task, stream))
            self._changed.notify_all()
        return stream

    def _prepare(self) -> None:
        """What the first thread does: prepare requests, as many ahead as there are rows."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or (self._waiting and len(self._ready) < self._max_rows))
                if not self._waiting:
                    return
                task, self._preparing = self._waiting.popleft()
                stream = self._preparing
            try:
                if stream.cancelled:
                    raise cancelled()
                prepared = Prepared(task, stream, task.prepare(self._max_tokens))
            except Exception as error:  # whatever it is, it is this request's alone
                prepared = None
                stream.end(error)
            with self._changed:
                self._preparing = None
                if prepared is not None:
                    self._ready.append(prepared)
                self._changed.notify_all()

    def _decode(self) -> None:
        """What the second thread does: run what is ready."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batch.busy or self._ready or self._done)
                self._drop_cancelled()
                begins = self._ready.popleft() if self._ready and self._batch.accepts(self._ready[0]) else None
                self._changed.notify_all()  # there is room for another prepared one, or nothing is left to prepare
                if self._done and begins is None and not self._batch.busy:
                    return
            try:
                if begins is not None:
                    self._batch.begin(begins)
                self._batch.advance()
            except Exception as error:  # the device or the memory: all that runs is lost, what comes is not
                self._batch.fail(error)
                if begins is not None:
                    begins.stream.end(error)

    @property
    def _done(self) -> bool:
        """Whether nothing is queued and nothing will be."""
        return self._closed and not self._queued

    def _drop_cancelled(self) -> None:
        """End queued requests that were cancelled."""
        for stream in [stream for _, stream in self._waiting if stream.cancelled]:
            stream.end(cancelled())
        for prepared in [prepared for prepared in self._ready if prepared.stream.cancelled]:
            prepared.stream.end(cancelled())
        self._waiting = deque(item for item in self._waiting if not item[1].cancelled)
        self._ready = deque(prepared for prepared in self._ready if not prepared.stream.cancelled)

    def _cancel_all(self) -> None:
        queued = [*(stream for _, stream in self._waiting), *(prepared.stream for prepared in self._ready)]
        for stream in queued + ([self._preparing] if self._preparing else []):
            stream.cancel()
        self._batch.cancel()
        self._drop_cancelled()
