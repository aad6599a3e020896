"""The kinds of requests: what each needs before it runs, what runs, and what it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ..assembly import EncodedRequest, Regions
from ..generation.lookahead import Earlier, Guesses
from ..generation.steps import Chosen, Steps
from ..grounding.types import Grounded
from ..inference.run import Logits
from ..inputs import Request
from ..options import Settings
from ..pipeline import Pipeline
from ..results import Generation, Score, StageTimer
from ..text.prompt import EncodedPrompt
from .answer_stream import Piece, Result, Texts
from .capacity import room


class Task(Protocol):
    """One request.

    Attributes:
        copies: how many rows it takes.
        timer: was started when the request was submitted.
        guesses: guesses its tokens, while it is the only one; None where that is not possible.
    """

    copies: int
    timer: StageTimer
    guesses: Guesses | None

    def encode(self, max_tokens: int) -> EncodedPrompt:
        """Read its media and encode its prompt.

        Raises:
            InputError: if it cannot be used, or needs more than `max_tokens` tokens.
        """

    def search(self, logits: Logits) -> Steps[Any]:
        """What chooses its tokens from the logits (1, vocab) after the prompt."""

    def pieces(self, chosen: Sequence[Chosen]) -> Iterator[Piece]:
        """What a caller is told of chosen ids."""

    def finish(self, value: Any) -> tuple[list[Piece], Result]:
        """What the request ends with, from what the search returned; and the pieces before it."""


class Generate:
    """Answers a prompt. Without `pieces` a caller is told of the end alone, which spares small models time."""

    def __init__(self, pipeline: Pipeline, request: Request, settings: Settings, pieces: bool = True) -> None:
        self._pipeline, self._request, self._settings = pipeline, request, settings
        self.copies = settings.copies
        self.timer = StageTimer()
        self._reader = pipeline.new_reader(settings)
        self._texts = Texts(self._reader, settings.num_return_sequences, self._grounded) if pieces else None
        self._encoded: EncodedRequest | None = None
        self.guesses: Guesses | None = None
        self._regions: Regions
        self.search: Callable[[Logits], Steps[Any]]

    def encode(self, max_tokens: int) -> EncodedPrompt:
        self.timer.lap("queue")
        self._encoded = self._pipeline.encode(self._request)
        self._regions = self._pipeline.regions(self._encoded)
        prompt = self._encoded.prompt
        new_tokens = room(self._pipeline, prompt, self._settings.max_new_tokens, max_tokens)
        settings = dataclasses.replace(self._settings, max_new_tokens=new_tokens)
        self.search = self._pipeline.new_search([prompt], settings, self._reader)
        # The answers of others are not looked up: how fast an answer comes would tell of them.
        self.guesses = self._pipeline.guesses([prompt], settings, Earlier(0))
        self.timer.lap("preprocess")
        return prompt

    def pieces(self, chosen: Sequence[Chosen]) -> Iterator[Piece]:
        return iter(()) if self._texts is None else self._texts.pieces(chosen)

    def _grounded(self, ids: list[int]) -> Grounded:
        return self._regions(ids)

    def finish(self, value: Any) -> tuple[list[Piece], Generation]:
        assert self._encoded is not None
        (generation,) = self._pipeline.generations(value, [self._encoded], self._reader, self.timer)
        return [] if self._texts is None else list(self._texts.rest(generation)), generation


class ScoreCandidates:
    """Scores given answers to a prompt."""

    def __init__(self, pipeline: Pipeline, request: Request, candidates: Sequence[str]) -> None:
        self._pipeline, self._request = pipeline, request
        self._candidates, self._ids = zip(*pipeline.candidates(candidates))
        self.copies = len(self._ids)
        self.timer = StageTimer()
        self.guesses = None

    def encode(self, max_tokens: int) -> EncodedPrompt:
        self.timer.lap("queue")
        prompt = self._pipeline.encode(self._request).prompt
        room(self._pipeline, prompt, max(map(len, self._ids)) + 1, max_tokens)
        self.timer.lap("preprocess")
        return prompt

    def search(self, logits: Logits) -> Steps[list[list[float]]]:
        return self._pipeline.scoring(logits, self._ids)

    def pieces(self, chosen: Sequence[Chosen]) -> Iterator[Piece]:
        return iter(())

    def finish(self, value: list[list[float]]) -> tuple[list[Piece], list[Score]]:
        return [], [Score(*row) for row in zip(self._candidates, map(sum, value), self._ids, value)]
