"""Several questions about the same pictures, which are encoded once; nor is computed again what the cache holds."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..graphs import GenerationError, InputError, manifest
from . import media
from .grounding.patches import PhraseBoxes
from .inference.engine import Engine, Run
from .inputs import Images, Videos, listed
from .media import Media
from .options import Options, Settings, settle
from .results import Clock, Generation
from .stream import Stream, fold
from .text.prompt import Encoded

if TYPE_CHECKING:
    from .model import VLM


class Chat:
    """A conversation about pictures and videos; use `VLM.chat()`. One question at a time.

    Where the bundle has a chat template each question is a turn that knows the turns before it. Other models answer
    each question on its own.

    Attributes:
        messages: the turns so far, as chat messages.
    """

    def __init__(self, vlm: VLM, images: Images | None, videos: Videos | None) -> None:
        self._vlm, self._busy = vlm, threading.Lock()
        self._media, self._unnamed = Media(), self._read(images, videos)  # what messages name, and what none names yet
        self._embeds: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # tiles and their embeddings, by id of the tiles
        self._kept: Kept | None = None
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
        """Answer the next question. Arguments are those of `VLM.generate`; pictures are those that come with it.

        Raises:
            InputError: as `VLM.generate`, and for pictures with a question that is no turn.
            GenerationError: if another question is being answered.
        """
        settings = settle(options, self._vlm.manifest.generation)
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
        settings = settle(options, self._vlm.manifest.generation)
        if settings.num_return_sequences > 1:
            raise InputError("a stream is of one answer; use ask for several")
        return Stream(self._answer(prompt, images, videos, bboxes, settings), self._vlm._reader(settings))

    def _answer(
        self,
        prompt: str,
        images: Images | None,
        videos: Videos | None,
        bboxes: PhraseBoxes | None,
        settings: Settings,
    ) -> Generator[list[tuple[int, int]], None, list[Generation]]:
        if not isinstance(prompt, str):
            raise InputError(f"a question is a text, not {type(prompt).__name__}; chat.messages has the turns so far")
        if not self._busy.acquire(blocking=False):
            raise GenerationError("another question is being answered; wait for its answer, or close its stream")
        try:
            vlm, clock = self._vlm, Clock()
            in_turns = isinstance(vlm.manifest.prompt, manifest.Chat)
            if not in_turns and self.messages and (images is not None or videos is not None):
                raise InputError("this model answers each question on its own; begin another chat for other pictures")
            new = self._unnamed + self._read(images, videos)
            about, turn = self._media + new, _turn(prompt, new)
            vlm.limits.check_images(len(about))
            question = vlm._prompt([*self.messages, turn] if in_turns else prompt, about, bboxes)
            (answer,) = yield from vlm._answer(
                [(question, about.size)], settings, vlm._reader(settings), self._start, clock
            )
            if self._kept is not None and settings.num_beams == settings.num_return_sequences == 1:
                self._kept.extend(answer.token_ids)
            self.messages += [turn, {"role": "assistant", "content": answer.text}]
            self._media, self._unnamed = about, Media()
            return [answer]
        finally:
            self._busy.release()

    def _read(self, images: Images | None, videos: Videos | None) -> Media:
        return media.read(listed(images), listed(videos), self._vlm.manifest, self._vlm.limits)

    def _start(self, prompts: Sequence[Encoded], new_tokens: int, copies: int, clock: Clock) -> tuple[np.ndarray, Run]:
        """`VLM._start`, but for pictures of earlier turns and tokens that the cache holds."""
        (prompt,), engine = prompts, self._vlm._engine
        new = [tiles for tiles in prompt.tiles if id(tiles) not in self._embeds]
        encoded = {id(tiles): (tiles, some) for tiles, some in zip(new, self._vlm._embeddings(new))}
        known = self._embeds | encoded
        self._embeds = {id(tiles): known[id(tiles)] for tiles in prompt.tiles}
        row = engine.merge(prompt, [self._embeds[id(tiles)][1] for tiles in prompt.tiles])
        clock.lap("vision")
        kept, self._kept = self._kept, None  # nothing is kept if the run fails
        held = kept.common(row) if kept else 0
        if kept and held:
            logits, run = engine.resume(kept.run, held, row[held:], new_tokens, copies)
        else:
            logits, run = engine.start([row], new_tokens, copies)
        if self._vlm.manifest.causal:
            self._kept = Kept(engine, run, row)
        clock.lap("prefill")
        return logits, run


class Kept:
    """A run, and the embeddings (tokens, hidden) of what the first row of its cache holds."""

    def __init__(self, engine: Engine, run: Run, embeds: np.ndarray) -> None:
        self._engine, self.run, self._embeds = engine, run, embeds

    def extend(self, ids: Sequence[int]) -> None:
        """Count the ids of an answer in, but the last, which was not fed."""
        self._embeds = np.concatenate([self._embeds, self._engine.embed_tokens(np.array(ids[:-1], np.int64))])

    def common(self, row: np.ndarray) -> int:
        """How many tokens another prompt (tokens, hidden) begins with that are held; not all of it."""
        size = min(len(row) - 1, len(self._embeds))
        differ = (row[:size] != self._embeds[:size]).any(axis=1)
        return int(differ.argmax()) if differ.any() else size


def _turn(prompt: str, about: Media) -> dict[str, Any]:
    """A user's message with its pictures and videos first."""
    pictures = [{"type": "image"}] * len(about.images) + [{"type": "video"}] * len(about.videos)
    return {"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}
