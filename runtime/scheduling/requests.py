"""A request on its way through a scheduler: it waits, is prepared, its prompt runs, and then it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...graphs import GenerationError
from ..generation.steps import Advance, Steps
from ..pipeline import Pipeline
from .answer_stream import AnswerStream
from .tasks import Task

NOTHING = Advance(())


@dataclass(frozen=True)
class Waiting:
    """A request, and the stream that its answers go to."""

    task: Task
    stream: AnswerStream


@dataclass(frozen=True)
class Prepared(Waiting):
    """A request whose prompt is ready to run: embeddings (tokens, hidden)."""

    embeds: np.ndarray


@dataclass
class Joining:
    """Requests whose prompts run, in the rows behind those that answer.

    Attributes:
        prepared: one request, or several whose prompts run together and as wholes.
        row: of the first of them; the others have the next ones.
        done: tokens of the prompt that have run, where it is one.
    """

    prepared: Sequence[Prepared]
    row: int
    done: int = 0


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
    rows: list[int]
    length: int
    advance: Advance = NOTHING
    ids: list[int] = field(default_factory=list)


def prepare(pipeline: Pipeline, waiting: Sequence[Waiting], max_tokens: int) -> list[Prepared]:
    """Read media and encode prompts; the images of all requests are encoded together. Requests that fail end here.

    Returns:
        The others, prompts of like length behind each other.
    """
    encoded = []
    for request in waiting:
        try:
            if request.stream.cancelled:
                raise cancelled()
            encoded.append((request, request.task.encode(max_tokens)))
        except Exception as error:  # whatever it is, it is this request's alone
            request.stream.end(error)
    try:
        embeds = pipeline.embed([prompt for _, prompt in encoded])
    except Exception as error:
        if len(waiting) == 1:
            waiting[0].stream.end(error)
            return []
        # One of them may be at fault, or there was no memory for all: each has its own chance.
        return [prepared for request, _ in encoded for prepared in prepare(pipeline, [request], max_tokens)]
    for request, _ in encoded:
        request.task.timer.lap("vision")
    prepared = [Prepared(request.task, request.stream, row) for (request, _), row in zip(encoded, embeds)]
    return sorted(prepared, key=lambda request: len(request.embeds))


def cancelled() -> GenerationError:
    """What a cancelled request ends with."""
    return GenerationError("the request was cancelled")
