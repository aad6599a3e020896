"""The requests that run: their rows of one KV cache, a step at a time. Only one thread may use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..generation.lookahead import GuessedStep, Guesses, ids_of
from ..generation.steps import settle
from ..inference.engine import Engine
from ..inference.run import Logits
from .pace import MOST, Pace
from .prefixes import Prefix, Prefixes
from .requests import Active, Joining, Prepared, cancelled


class Batch:
    """Answers requests together, each as if it were alone.

    The rows in use are always the first ones. Prompts run in the rows behind them and join them at the next step: one
    alone, in parts where the model allows it, or several short ones at once. When an answer ends, the last row takes
    its place.

    Args:
        causal: whether a token sees only what stands before it, or its image, so that a prompt may run in parts.
        together: the most prompts that run at once.
    """

    def __init__(
        self,
        engine: Engine,
        max_rows: int,
        max_tokens: int,
        causal: bool,
        prefixes: Prefixes,
        pace: Pace,
        together: int = 1,
    ) -> None:
        self._engine, self._causal, self._prefixes, self._pace = engine, causal, prefixes, pace
        self._max_rows, self._max_tokens, self._together = max_rows, max_tokens, together
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

    def accepts(self, ready: Sequence[Prepared]) -> int:
        """How many of the requests that are ready, in their order, can begin now: none while another prompt runs, nor
        before half of those that may run together have rows for their answers."""
        if self._joining or not ready:
            return 0
        count, begin, rows, longest = 0, 0, 0, 0
        free = self._max_rows - self.rows
        for prepared in ready[: self._together]:
            longest, rows = max(longest, len(prepared.embeds)), rows + prepared.task.copies
            # With so few tokens they take no more memory than one long prompt.
            fits = (count + 1) * longest <= min(MOST, self._max_tokens) or not count
            if not fits or rows > self._max_rows:
                break
            count += 1
            begin = count if rows <= free else begin
        return begin if begin >= min(count, max(1, self._together // 2)) else 0

    def begin(self, prepared: Sequence[Prepared]) -> None:
        """Give requests that run together a row each; one alone also what is known of the beginning of its prompt."""
        for request in prepared:
            request.task.timer.lap("queue")
        self._close_gaps()
        self._joining = Joining(prepared, row=sum(len(request.rows) for request in self._active))
        saved: Any = ()
        if self._causal and len(prepared) == 1:
            saved, length = self._prefixes.find(prepared[0].embeds)
            self._joining.done = self._engine.uncut(prepared[0].embeds, length)
        for row in range(self._joining.row, self._joining.row + len(prepared)):
            self._run.begin(row, saved, self._joining.done)

    def advance(self) -> None:
        """Run the prompts that wait, or a part of one, then a step of all answers."""
        self._drop_cancelled()
        if self._joining:
            self._run_prompts(self._joining)
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
        return [request.prepared for request in list(self._active)] + [*(joining.prepared if joining else ())]

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._active if request.prepared.stream.cancelled]:
            request.search.close()
            self._end(request, cancelled())
        if self._joining and len(self._joining.prepared) == 1 and self._joining.prepared[0].stream.cancelled:
            self._joining.prepared[0].stream.end(cancelled())
            self._joining = None

    def _run_prompts(self, joining: Joining) -> None:
        embeds = [request.embeds[joining.done :] for request in joining.prepared]
        left = sum(map(len, embeds))
        tokens = left
        if self._causal and len(embeds) == 1:
            end = joining.done + self._pace.tokens(left, bool(self._active))
            tokens = self._engine.uncut(joining.prepared[0].embeds, end, joining.done) - joining.done
            embeds = [embeds[0][:tokens]]
        start = time.perf_counter()
        logits = self._run.append(joining.row, embeds)
        self._pace.ran_tokens(tokens, time.perf_counter() - start, bool(self._active))
        joining.done += tokens
        if tokens < left:
            return
        self._joining = None
        for index, prepared in enumerate(joining.prepared):
            prepared.task.timer.lap("prefill")
            search = prepared.task.search(_some(logits, [index]))
            self._active.append(Active(prepared, search, [joining.row + index], len(prepared.embeds)))
            self._choose(self._active[-1], None)

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
        sources = self._move([[request.rows[row] for row in request.advance.rows] for request in active])
        ids = np.zeros(len(sources), np.int64)
        before: dict[int, Sequence[int]] = {}
        for request in active:
            ids[request.rows] = request.advance.ids
            before |= {request.rows[index]: earlier for index, earlier in request.advance.before.items()}
        logits = self._run.step(sources, ids, before)
        self.steps += 1
        for request in active:
            request.length += 1 + max(map(len, request.advance.before.values()), default=0)
            if len(request.rows) == 1:
                request.ids += ids_of(request.advance)
                if guesses := request.prepared.task.guesses:
                    guesses.extend(ids_of(request.advance))
            self._choose(request, _some(logits, request.rows))
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
            self._prefixes.keep(Prefix(embeds, self._run.save(request.rows[0], request.length), nbytes))

    def _close_gaps(self) -> None:
        """Move rows so that those in use are the first ones."""
        self._run.keep(self._move([request.rows for request in self._active]))

    def _move(self, continued: Sequence[Sequence[int]]) -> np.ndarray:
        """Give requests new rows, the first ones, which continue these; of all new rows (rows,) those."""
        sources = [row for rows in continued for row in rows]
        order = settle(sources)
        new_rows = [0] * len(order)  # of each source
        for row, index in enumerate(order):
            new_rows[index] = row
        first = 0
        for request, rows in zip(self._active, continued):
            request.rows = new_rows[first : first + len(rows)]
            first += len(rows)
        return np.array([sources[index] for index in order], np.int64)


def _some(logits: Logits, rows: Sequence[int]) -> Logits:
    """The logits of some rows, those of one without a copy where they are on the host."""
    if isinstance(logits, np.ndarray) and len(rows) == 1:
        return logits[rows[0] : rows[0] + 1]
    return logits.take(rows, axis=0)
