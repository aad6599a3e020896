"""The requests that run: their rows of one KV cache, a step at a time. Only one thread may use it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...graphs import GenerationError
from ..generation.lookahead import GuessedStep, Guesses, ids_of
from ..generation.steps import Advance, Steps, settle
from ..inference.engine import Engine
from .answer_stream import AnswerStream
from .pace import MOST, Pace
from .prefixes import Prefix, Prefixes
from .tasks import Task

NOTHING = Advance(())


@dataclass
class Prepared:
    """A request whose prompt is ready to run: embeddings (tokens, hidden)."""

    task: Task
    stream: AnswerStream
    embeds: np.ndarray


@dataclass
class Joining:
    """A request whose prompt runs, alone in the row behind those that answer."""

    prepared: Prepared
    row: int
    done: int  # tokens of the prompt that have run


@dataclass
class Active:
    """A request that is answered.

    Attributes:
        rows: the rows of its answers.
        advance: the step that it needs next.
        length: tokens in each of them.
        ids: ids that have run after the prompt, where there is one answer.
    """

    prepared: Prepared
    search: Steps[Any]
    rows: np.ndarray
    length: int
    advance: Advance = NOTHING
    ids: list[int] = field(default_factory=list)


class Batch:
    """Answers requests together, each as if it were alone.

    The rows in use are always the first ones. A prompt runs in the row behind them, in parts where the model allows
    it, and joins them at the next step. When an answer ends, the last row takes its place.

    Args:
        causal: whether a token sees only what stands before it, or its image, so that a prompt may run in parts.
    """

    def __init__(
        self, engine: Engine, max_rows: int, max_tokens: int, causal: bool, prefixes: Prefixes, pace: Pace
    ) -> None:
        self._engine, self._causal, self._prefixes, self._pace = engine, causal, prefixes, pace
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._joining: Joining | None = None
        self._active: list[Active] = []
        self._run = engine.open(max_rows, max_tokens, longest=min(MOST, max_tokens) if causal else max_tokens)
        self.steps = self.tokens = 0

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._prepared())

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._prepared())

    @property
    def rows(self) -> int:
        """How many rows are taken."""
        return sum(prepared.task.copies for prepared in self._prepared())

    @property
    def tokens_held(self) -> int:
        """How many tokens the rows in use hold."""
        return sum(request.length * len(request.rows) for request in list(self._active))

    def accepts(self, prepared: Prepared) -> bool:
        """Whether a request can begin now: one prompt runs at a time, and its answers need free rows."""
        return self._joining is None and self.rows + prepared.task.copies <= self._max_rows

    def begin(self, prepared: Prepared) -> None:
        """Give a request a row, and what is known of the beginning of its prompt."""
        prepared.task.timer.lap("queue")
        self._close_gaps()
        row = sum(len(request.rows) for request in self._active)
        saved, length = self._prefixes.find(prepared.embeds) if self._causal else ((), 0)
        self._joining = Joining(prepared, row, self._engine.uncut(prepared.embeds, length))
        self._run.begin(row, saved, self._joining.done)

    def advance(self) -> None:
        """Run a part of the prompt that waits, then a step of all answers."""
        self._drop_cancelled()
        if self._joining:
            self._run_prompt(self._joining)
        alone = len(self._active) == 1 and not self._joining
        if alone and (guesses := self._active[0].prepared.task.guesses):
            self._step_ahead(self._active[0], guesses)
        elif self._active:
            self._step()

    def cancel(self) -> None:
        """Cancel all that runs."""
        for prepared in self._prepared():
            prepared.stream.cancel()

    def fail(self, error: Exception) -> None:
        """End all that runs with an error."""
        failed, self._active, self._joining = self._prepared(), [], None
        for prepared in failed:
            prepared.stream.end(error)

    def _prepared(self) -> list[Prepared]:
        """The requests that run."""
        joining = self._joining
        return [request.prepared for request in list(self._active)] + ([joining.prepared] if joining else [])

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._active if request.prepared.stream.cancelled]:
            request.search.close()
            self._end(request, cancelled())
        if self._joining and self._joining.prepared.stream.cancelled:
            self._joining.prepared.stream.end(cancelled())
            self._joining = None

    def _run_prompt(self, joining: Joining) -> None:
        embeds = joining.prepared.embeds
        left = len(embeds) - joining.done
        tokens = self._pace.tokens(left, bool(self._active)) if self._causal else left
        tokens = self._engine.uncut(embeds, joining.done + tokens, joining.done) - joining.done
        start = time.perf_counter()
        logits = self._run.append(joining.row, embeds[joining.done : joining.done + tokens])
        self._pace.ran_tokens(tokens, time.perf_counter() - start)
        joining.done += tokens
        if joining.done < len(embeds):
            return
        self._joining, task = None, joining.prepared.task
        task.timer.lap("prefill")
        request = Active(joining.prepared, task.search(logits), np.array([joining.row]), len(embeds))
        self._active.append(request)
        self._choose(request, None)

    def _step_ahead(self, request: Active, guesses: Guesses) -> None:
        """Append the ids that have been chosen to the only answer, and those that are guessed to follow."""
        start = time.perf_counter()
        self._close_gaps()
        step = GuessedStep(self._run, guesses, request.advance, self._max_tokens - request.length)
        self.steps += 1
        chosen = True
        while chosen:
            ids = ids_of(request.advance)
            request.ids, request.length = request.ids + ids, request.length + len(ids)
            self._choose(request, step.logits)
            chosen = request in self._active and step.guessed(request.advance)
        step.close()
        self._pace.ran_step(time.perf_counter() - start)

    def _step(self) -> None:
        """Append the ids that have been chosen to all answers, and choose the next."""
        start = time.perf_counter()
        active = list(self._active)
        sources = np.concatenate([request.rows[request.advance.rows] for request in active])
        ids = np.concatenate([request.advance.ids for request in active])
        order = settle(sources)
        rows = np.argsort(order)  # of each source its new row
        parts = np.split(rows, np.cumsum([len(request.advance.rows) for request in active])[:-1])
        before = {
            int(part[index]): earlier
            for request, part in zip(active, parts)
            for index, earlier in request.advance.before.items()
        }
        logits = self._run.step(sources[order], ids[order], before)
        self.steps += 1
        for request, part in zip(active, parts):
            request.rows = part
            request.length += 1 + max(map(len, request.advance.before.values()), default=0)
            if len(part) == 1:
                request.ids += ids_of(request.advance)
                if guesses := request.prepared.task.guesses:
                    guesses.extend(ids_of(request.advance))
            self._choose(request, logits.take(part, axis=0))
        self._pace.ran_step(time.perf_counter() - start)

    def _choose(self, request: Active, logits: Any) -> None:
        """Let a request choose its next ids by logits (rows, vocab); None where it has those of its prompt."""
        stream, task = request.prepared.stream, request.prepared.task
        try:
            request.advance = request.search.send(logits)
            self.tokens += len(request.advance.chosen)
            for piece in task.pieces(request.advance.chosen):
                stream.put(piece)
            if not len(request.advance.rows):
                request.search.send(None)
        except StopIteration as end:
            task.timer.lap("decode")
            self._keep_prefix(request)
            pieces, result = task.finish(end.value)
            for piece in pieces:
                stream.put(piece)
            self._end(request, result)
        except Exception as error:  # of this request alone: the others go on
            self._end(request, error)

    def _end(self, request: Active, result: Any) -> None:
        self._active.remove(request)
        request.prepared.stream.end(result)

    def _keep_prefix(self, request: Active) -> None:
        """Keep the KV of a conversation for its next turn."""
        prompt = request.prepared.embeds
        nbytes = self._engine.saved_bytes(request.length, self._max_tokens) + request.length * prompt[0].nbytes
        if self._causal and request.prepared.task.copies == 1 and self._prefixes.wants(request.length, nbytes):
            embeds = np.concatenate([prompt, self._engine.embed_tokens(np.array(request.ids, np.int64))])
            self._prefixes.keep(Prefix(embeds, self._run.save(int(request.rows[0]), request.length), nbytes))

    def _close_gaps(self) -> None:
        """Move rows so that those in use are the first ones."""
        sources = np.concatenate([np.zeros(0, np.int64), *(request.rows for request in self._active)])
        order = settle(sources)
        self._run.keep(sources[order])
        parts = np.split(np.argsort(order), np.cumsum([len(request.rows) for request in self._active])[:-1])
        for request, rows in zip(self._active, parts):
            request.rows = rows


def cancelled() -> GenerationError:
    """What a cancelled request ends with."""
    return GenerationError("the request was cancelled")
