"""The requests that run: their rows of one KV cache, a step at a time. Only one thread may use it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...graphs import GenerationError
from ..generation.steps import Advance, Steps
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
class Answering:
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
        causal: whether a token sees only what stands before it, so that a prompt may run in parts.
    """

    def __init__(
        self, engine: Engine, max_rows: int, max_tokens: int, causal: bool, prefixes: Prefixes, pace: Pace
    ) -> None:
        self._engine, self._causal, self._prefixes, self._pace = engine, causal, prefixes, pace
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._joining: Joining | None = None
        self._answering: list[Answering] = []
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
        return sum(one.length * len(one.rows) for one in list(self._answering))

    def accepts(self, prepared: Prepared) -> bool:
        """Whether a request can begin now: one prompt runs at a time, and its answers need free rows."""
        return self._joining is None and self.rows + prepared.task.copies <= self._max_rows

    def begin(self, prepared: Prepared) -> None:
        """Give a request a row, and what is known of the beginning of its prompt."""
        prepared.task.timer.lap("queue")
        self._close_gaps()
        row = sum(len(one.rows) for one in self._answering)
        saved, length = self._prefixes.find(prepared.embeds) if self._causal else ((), 0)
        self._run.begin(row, saved, length)
        self._joining = Joining(prepared, row, length)

    def advance(self) -> None:
        """Run a part of the prompt that waits, then a step of all answers."""
        self._drop_cancelled()
        if self._joining:
            self._run_prompt(self._joining)
        if self._answering:
            self._step()

    def cancel(self) -> None:
        """Cancel all that runs."""
        for prepared in self._prepared():
            prepared.stream.cancel()

    def fail(self, error: Exception) -> None:
        """End all that runs with an error."""
        failed, self._answering, self._joining = self._prepared(), [], None
        for prepared in failed:
            prepared.stream.end(error)

    def _prepared(self) -> list[Prepared]:
        """The requests that run."""
        joining = self._joining
        return [one.prepared for one in list(self._answering)] + ([joining.prepared] if joining else [])

    def _drop_cancelled(self) -> None:
        for one in [one for one in self._answering if one.prepared.stream.cancelled]:
            one.search.close()
            self._end(one, cancelled())
        if self._joining and self._joining.prepared.stream.cancelled:
            self._joining.prepared.stream.end(cancelled())
            self._joining = None

    def _run_prompt(self, joining: Joining) -> None:
        embeds = joining.prepared.embeds
        left = len(embeds) - joining.done
        tokens = self._pace.tokens(left, bool(self._answering)) if self._causal else left
        start = time.perf_counter()
        logits = self._run.append(joining.row, embeds[joining.done : joining.done + tokens])
        self._pace.ran_tokens(tokens, time.perf_counter() - start)
        joining.done += tokens
        if joining.done < len(embeds):
            return
        self._joining = None
        task = joining.prepared.task
        task.timer.lap("prefill")
        answering = Answering(joining.prepared, task.search(logits), np.array([joining.row]), len(embeds))
        self._answering.append(answering)
        self._choose(answering, None)

    def _step(self) -> None:
        """Append the ids that have been chosen to all answers, and choose the next."""
        start = time.perf_counter()
        answering = list(self._answering)
        sources = np.concatenate([one.rows[one.advance.rows] for one in answering])
        ids = np.concatenate([one.advance.ids for one in answering])
        order = settle(sources)
        rows = np.argsort(order)  # of each source its new row
        parts = np.split(rows, np.cumsum([len(one.advance.rows) for one in answering])[:-1])
        before = {
            int(part[index]): earlier
            for one, part in zip(answering, parts)
            for index, earlier in one.advance.before.items()
        }
        logits = self._run.step(sources[order], ids[order], before)
        self.steps += 1
        for one, part in zip(answering, parts):
            one.rows = part
            one.length += 1 + max(map(len, one.advance.before.values()), default=0)
            if len(part) == 1:
                one.ids += [*one.advance.before.get(0, ()), int(one.advance.ids[0])]
            self._choose(one, logits.take(part, axis=0))
        self._pace.ran_step(time.perf_counter() - start)

    def _choose(self, one: Answering, logits: Any) -> None:
        """Let a request choose its next ids by logits (rows, vocab); None where it has those of its prompt."""
        stream, task = one.prepared.stream, one.prepared.task
        try:
            one.advance = one.search.send(logits)
            self.tokens += len(one.advance.chosen)
            for piece in task.pieces(one.advance.chosen):
                stream.put(piece)
            if not len(one.advance.rows):
                one.search.send(None)
        except StopIteration as end:
            task.timer.lap("decode")
            self._keep_prefix(one)
            pieces, result = task.finish(end.value)
            for piece in pieces:
                stream.put(piece)
            self._end(one, result)
        except Exception as error:  # of this request alone: the others go on
            self._end(one, error)

    def _end(self, one: Answering, result: Any) -> None:
        self._answering.remove(one)
        one.prepared.stream.end(result)

    def _keep_prefix(self, one: Answering) -> None:
        """Keep the KV of a conversation for its next turn."""
        prompt = one.prepared.embeds
        nbytes = self._engine.saved_bytes(one.length, self._max_tokens) + one.length * prompt[0].nbytes
        if self._causal and one.prepared.task.copies == 1 and self._prefixes.wants(one.length, nbytes):
            embeds = np.concatenate([prompt, self._engine.embed_tokens(np.array(one.ids, np.int64))])
            self._prefixes.keep(Prefix(embeds, self._run.save(int(one.rows[0]), one.length), nbytes))

    def _close_gaps(self) -> None:
        """Move rows so that those in use are the first ones."""
        sources = np.concatenate([np.zeros(0, np.int64), *(one.rows for one in self._answering)])
        order = settle(sources)
        self._run.keep(sources[order])
        parts = np.split(np.argsort(order), np.cumsum([len(one.rows) for one in self._answering])[:-1])
        for one, rows in zip(self._answering, parts):
            one.rows = rows


def settle(sources: np.ndarray) -> np.ndarray:
    """An order of `sources` (rows,), so that few rows move: a row that goes on stays where it is if that is one of the
    first `rows`, and others fill the gaps."""
    order = np.full(len(sources), -1)
    others = []
    for index, source in enumerate(sources):
        if source < len(order) and order[source] < 0:
            order[source] = index
        else:
            others.append(index)
    order[order < 0] = others
    return order


def cancelled() -> GenerationError:
    """What a cancelled request ends with."""
    return GenerationError("the request was cancelled")
