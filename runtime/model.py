"""load() and VLM: pictures and prompts in, answers out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from ..graphs import InputError, contract, manifest
from . import entities, grounding, image, video
from .beam import search
from .decode import decode, greedy
from .engine import Engine
from .entities import Entity, PhraseBoxes
from .grounding import Box
from .inputs import Images, Request, Videos, is_batch, requests
from .prompt import Encoded, PromptInput, Prompts


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer without special tokens.
        token_ids: the new ids, the one that ended the answer included.
        finish_reason: "stop" if the model ended the answer, "length" if it was cut.
        prompt_tokens: how many tokens the prompt had, those of pictures included.
        boxes: boxes named in the answer, in pixels of the first picture.
        caption: prompt and answer as one text without tags, where a model writes phrases with boxes into its text.
        entities: the phrases of the caption that have boxes, in pixels of the picture (in 0..1 without one).
        timings: seconds of `preprocess`, `vision`, `prefill` and `decode`, and `tokens_per_second` of the decoding; of
            the whole call where several prompts were answered together.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    boxes: list[Box] = field(default_factory=list)
    caption: str | None = None
    entities: list[Entity] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


def load(bundle: str | os.PathLike[str], provider: str = "auto", threads: int | None = None) -> VLM:
    """Load a bundle.

    Args:
        bundle: the folder that an export wrote.
        provider: "auto" or "cpu".
        threads: threads for one operator; ONNX Runtime decides if None.

    Raises:
        BundleError: if the bundle is incomplete, damaged or of another format.
        ProviderError: if the provider cannot be used.
    """
    return VLM(Path(bundle), provider, threads)


class VLM:
    """A loaded model. Use `load()`."""

    def __init__(self, folder: Path, provider: str, threads: int | None) -> None:
        self.manifest = manifest.load(folder)
        tile_tokens = self.manifest.graphs[contract.PROJECTOR].outputs[0].shape[1]
        self._prompts = Prompts(folder, self.manifest.prompt, tile_tokens)
        self._engine = Engine(folder, self.manifest, provider, threads)

    @overload
    def generate(
        self,
        prompt: PromptInput,
        images: Images | None = None,
        videos: Videos | None = None,
        *,
        bboxes: PhraseBoxes | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Sequence[PromptInput],
        images: Sequence[Images | None] | None = None,
        videos: Sequence[Videos | None] | None = None,
        *,
        bboxes: Sequence[PhraseBoxes | None] | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[Generation]: ...

    def generate(
        self, prompt, images=None, videos=None, *, bboxes=None, max_new_tokens=None, num_beams=1, length_penalty=1.0
    ):
        """Answer a prompt about pictures; or several prompts at once.

        Args:
            prompt: the prompt as the model's authors write it, without image placeholders; where the bundle has a chat
                template, one user turn, or a list of chat messages. Or a list of prompts.
            images: a picture or a list of them: a path, the bytes of a file, a Pillow image or an array
                (height, width, 3) of uint8. For a list of prompts, a list with one entry, or a list, for each.
            videos: a video or a list of them: the path of a file or of a folder with a picture a frame, or an array
                (frames, height, width, 3) of uint8. For a list of prompts as with `images`.
            bboxes: for each `<phrase>` of the prompt its boxes, where the model takes them: None, a box or a list of
                boxes; a box is two patch indices, or xmin, ymin, xmax, ymax in 0..1.
            max_new_tokens: where an answer is cut; the bundle's default if None.
            num_beams: how many answers to follow for the likeliest as a whole; with 1 the likeliest token is taken.
            length_penalty: with several beams, an answer's log-probability is divided by its length to this power.

        Raises:
            InputError: for a picture that cannot be read, a prompt that is too long, lists that do not match.
        """
        if num_beams < 1:
            raise InputError(f"num_beams is {num_beams}; give 1 or more")
        answers = self._answer(requests(prompt, images, videos, bboxes), max_new_tokens, num_beams, length_penalty)
        return answers if is_batch(prompt) else answers[0]

    def _answer(
        self, asked: list[Request], max_new_tokens: int | None, num_beams: int, length_penalty: float
    ) -> list[Generation]:
        clock = _Clock()
        prompts, sizes = zip(*(self._encode(request) for request in asked))
        new_tokens = self._room(max(len(prompt.ids) for prompt in prompts), max_new_tokens)
        clock.lap("preprocess")
        rows = [self._engine.embed(prompt) for prompt in prompts]
        clock.lap("vision")
        logits, run = self._engine.start(rows, new_tokens)
        clock.lap("prefill")
        stop_ids = self.manifest.generation.eos_token_ids
        if num_beams == 1:
            steps = list(decode(logits, run.step, greedy, stop_ids, new_tokens))
            answers = [[token for token in row if token is not None] for row in zip(*steps)]
        else:
            answers = search(logits, run.keep_and_step, stop_ids, new_tokens, num_beams, length_penalty)
        clock.lap("decode")
        decoded = sum(len(answer) - 1 for answer in answers)
        timings = clock.laps | {"tokens_per_second": decoded / clock.laps["decode"]}
        return [self._generation(*row, timings) for row in zip(answers, prompts, sizes)]

    def _encode(self, request: Request) -> tuple[Encoded, tuple[int, int] | None]:
        """The prompt of a request, and width and height of its first picture."""
        opened = [image.read(picture) for picture in request.images]
        tiles = [image.tiles(picture, self.manifest.image) for picture in opened]
        recipe = self.manifest.video
        if request.videos and recipe is None:
            raise InputError(f"this model takes no videos, {len(request.videos)} given")
        frames = [video.tiles(some, recipe) for some in request.videos] if recipe else []
        prompt, format = request.prompt, self.manifest.grounding
        if request.bboxes is not None:
            if not isinstance(format, manifest.PatchTokens) or not isinstance(prompt, str):
                raise InputError("this model takes no bboxes; leave them out")
            prompt = entities.with_boxes(prompt, request.bboxes, format)
        return self._prompts.encode(prompt, tiles, frames), opened[0].size if opened else None

    def _room(self, prompt_tokens: int, max_new_tokens: int | None) -> int:
        """How many tokens may be made after a prompt of that length."""
        limits = self.manifest.generation
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; give 1 or more, or leave it out")
        room = limits.max_positions - prompt_tokens
        if room < (max_new_tokens or 1):
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, pictures included, and the model {limits.max_positions}"
                f" positions, so {max(0, room)} are left for an answer of {max_new_tokens or 'at least 1'};"
                " shorten the prompt or ask for fewer tokens"
            )
        return max_new_tokens or min(room, limits.max_new_tokens)

    def _generation(
        self, ids: list[int], prompt: Encoded, size: tuple[int, int] | None, timings: dict[str, float]
    ) -> Generation:
        text, format = self._prompts.decode(ids), self.manifest.grounding
        caption, named, boxes = None, [], []
        if isinstance(format, manifest.PatchTokens):
            end = np.flatnonzero(prompt.places)[-1] + 1 if prompt.places.any() else 0
            whole = self._prompts.decode([*prompt.ids[end:], *ids])
            caption, named = entities.read(whole, format, *(size or (1, 1)))
            text, _ = entities.read(text, format, 1, 1)
            boxes = [box for entity in named for box in entity.boxes]
        elif format and size:
            boxes = grounding.boxes(text, format, *size)
        return Generation(
            text=text,
            token_ids=ids,
            finish_reason="stop" if ids[-1] in self.manifest.generation.eos_token_ids else "length",
            prompt_tokens=len(prompt.ids),
            boxes=boxes,
            caption=caption,
            entities=named,
            timings=timings,
        )


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
