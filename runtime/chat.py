"""A conversation: images are encoded once, and the KV cache of earlier turns is reused."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from ..graphs import GenerationError, InputError, manifest
from .grounding.types import PhraseBoxes
from .inference.engine import Engine
from .inference.run import Logits, Run
from .inference.token_embeddings import common_length
from .inputs import Images, Media, Videos, listed
from .options import Options, Settings, resolve
from .pipeline import Answering, Pipeline
from .results import Generation, StageTimer
from .stream import Stream, fold
from .text.prompt import EncodedPrompt


class Chat:
    """A conversation about images and videos; use `VLM.chat()`. One question at a time.

    Where the bundle has a chat template each question is a turn that knows the turns before it. Other models answer
    each question on its own.

    Attributes:
        messages: the turns so far, as chat messages.
    """

    def __init__(self, pipeline: Pipeline, images: Images | None, videos: Videos | None) -> None:
        self._pipeline = pipeline
        self._busy = threading.Lock()
        self._media = Media()  # what earlier turns name
        self._unnamed = self._read(images, videos)  # what the next turn will name
        self._embeds: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # tiles and their embeddings, by id of the tiles
        self._prefix: CachedPrefix | None = None
        self.messages: list[dict[str, Any]] = []

    def ask(
        self,
        prompt: str,
        images: Images | None = None,
        videos: Videos | None = None,
        *,
        bboxes: PhraseBoxes | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Answer the next question. Arguments are those of `VLM.generate`; images are those that come with it.

        Raises:
            InputError: as `VLM.generate`, and for images with a question that is no turn.
            GenerationError: if another question is being answered.
        """
        settings = resolve(options, self._pipeline.manifest.generation)
        return fold(self._answer(prompt, images, videos, bboxes, settings))[0]

    def stream(
        self,
        prompt: str,
        images: Images | None = None,
        videos: Videos | None = None,
        *,
        bboxes: PhraseBoxes | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """`ask`, piece by piece. A stream that is closed before its end leaves the conversation as it was."""
        settings = resolve(options, self._pipeline.manifest.generation)
        if settings.num_return_sequences > 1:
            raise InputError("a stream is of one answer; use ask for several")
        return Stream(self._answer(prompt, images, videos, bboxes, settings), self._pipeline.new_reader(settings))

    def _answer(
        self,
        prompt: str,
        images: Images | None,
        videos: Videos | None,
        bboxes: PhraseBoxes | None,
        settings: Settings,
    ) -> Answering:
        if not isinstance(prompt, str):
            raise InputError(f"a question is a text, not {type(prompt).__name__}; chat.messages has the turns so far")
        if not self._busy.acquire(blocking=False):
            raise GenerationError("another question is being answered; wait for its answer, or close its stream")
        try:
            timer = StageTimer()
            in_turns = isinstance(self._pipeline.manifest.prompt, manifest.ChatPrompt)
            if not in_turns and self.messages and (images is not None or videos is not None):
                raise InputError("this model answers each question on its own; begin another chat for other images")
            new = self._unnamed + self._read(images, videos)
            about = self._media + new
            turn = _turn(prompt, new)
            self._pipeline.limits.check_images(len(about))
            encoded = self._pipeline.encode_prompt([*self.messages, turn] if in_turns else prompt, about, bboxes)
            reader = self._pipeline.new_reader(settings)
            (answer,) = yield from self._pipeline.answer(
                [encoded], settings, reader, prefill=self._prefill, timer=timer
            )
            if self._prefix is not None and settings.num_beams == settings.num_return_sequences == 1:
                self._prefix.extend(answer.token_ids)
            self.messages += [turn, {"role": "assistant", "content": answer.text}]
            self._media, self._unnamed = about, Media()
            return [answer]
        finally:
            self._busy.release()

    def _read(self, images: Images | None, videos: Videos | None) -> Media:
        return self._pipeline.read_media(listed(images), listed(videos))

    def _prefill(
        self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, copies: int, timer: StageTimer
    ) -> tuple[Logits, Run]:
        """`Pipeline.prefill`, without what earlier turns have computed: embeddings of images, and the KV cache."""
        (prompt,) = prompts
        engine = self._pipeline.engine
        new = [tiles for tiles in prompt.tiles if id(tiles) not in self._embeds]
        encoded = {id(tiles): (tiles, embeds) for tiles, embeds in zip(new, self._pipeline.image_embeddings(new))}
        known = self._embeds | encoded
        self._embeds = {id(tiles): known[id(tiles)] for tiles in prompt.tiles}
        row = engine.merge(prompt, [self._embeds[id(tiles)][1] for tiles in prompt.tiles])
        timer.lap("vision")
        prefix, self._prefix = self._prefix, None  # nothing is kept if the run fails
        held = engine.uncut(row, prefix.common_length(row)) if prefix else 0
        if prefix and held:
            logits, run = engine.resume(prefix.run, held, row[held:], max_new_tokens, copies)
        else:
            logits, run = engine.start([row], max_new_tokens, copies)
        if self._pipeline.manifest.causal:
            self._prefix = CachedPrefix(engine, run, row)
        timer.lap("prefill")
        return logits, run


class CachedPrefix:
    """A run, and the embeddings (tokens, hidden) of the tokens in the first row of its cache."""

    def __init__(self, engine: Engine, run: Run, embeds: np.ndarray) -> None:
        self._engine = engine
        self.run = run
        self._embeds = embeds

    def extend(self, ids: Sequence[int]) -> None:
        """Add the ids of an answer, but the last, which was not run."""
        self._embeds = np.concatenate([self._embeds, self._engine.embed_tokens(np.array(ids[:-1], np.int64))])

    def common_length(self, row: np.ndarray) -> int:
        """How many tokens at the start of another prompt (tokens, hidden) are cached. The last is never counted: at
        least one token is left to run."""
        return common_length(row[:-1], self._embeds)


def _turn(prompt: str, about: Media) -> dict[str, Any]:
    """A user's message with its images and videos first."""
    images = [{"type": "image"}] * len(about.images) + [{"type": "video"}] * len(about.videos)
    return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}
