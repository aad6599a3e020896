"""load() and VLM: pictures and prompts in, answers out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
from PIL import Image

from ..graphs import InputError, contract, manifest
from . import grounding, image
from .decode import decode, greedy
from .engine import Engine
from .grounding import Box
from .image import ImageInput
from .prompt import Prompts

Images: TypeAlias = "ImageInput | Sequence[ImageInput]"


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer without special tokens.
        token_ids: the new ids, the one that ended the answer included.
        finish_reason: "stop" if the model ended the answer, "length" if it was cut.
        prompt_tokens: how many tokens the prompt had, those of pictures included.
        boxes: boxes named in the answer, in pixels of the first picture.
        timings: seconds of `preprocess`, `vision`, `prefill` and `decode`, and `tokens_per_second` of the decoding; of
            the whole call where several prompts were answered together.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    boxes: list[Box] = field(default_factory=list)
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
        self._prompts = Prompts(folder / contract.TOKENIZER, self.manifest.prompt)
        self._engine = Engine(folder, self.manifest, provider, threads)

    @overload
    def generate(
        self, prompt: str, images: Images | None = None, *, max_new_tokens: int | None = None
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str], images: list[Images] | None = None, *, max_new_tokens: int | None = None
    ) -> list[Generation]: ...

    def generate(self, prompt, images=None, *, max_new_tokens=None):
        """Answer a prompt about pictures, greedily; or several prompts at once.

        Args:
            prompt: the prompt as the model's authors write it, without image placeholders; or a list of prompts.
            images: a picture or a list of them: a path, the bytes of a file, a Pillow image or an array
                (height, width, 3) of uint8. For a list of prompts, a list with one entry, or a list, for each.
            max_new_tokens: where an answer is cut; the bundle's default if None.

        Raises:
            InputError: for a picture that cannot be read, a prompt that is too long, lists that do not match.
        """
        alone = isinstance(prompt, str)
        prompts = [prompt] if alone else list(prompt)
        pictures = _pictures([images] if alone else images, len(prompts))
        answers = self._answer(prompts, pictures, max_new_tokens)
        return answers[0] if alone else answers

    def _answer(
        self, prompts: list[str], pictures: list[list[ImageInput]], max_new_tokens: int | None
    ) -> list[Generation]:
        clock = _Clock()
        ids = [self._prompts.encode(prompt, len(some)) for prompt, some in zip(prompts, pictures)]
        new_tokens = self._room(max(map(len, ids)), max_new_tokens)
        opened = [[image.read(picture) for picture in some] for some in pictures]
        tiles = [image.tiles(picture, self.manifest.image) for some in opened for picture in some]
        clock.lap("preprocess")
        embeds = iter([self._engine.encode_images(tile) for tile in tiles])
        clock.lap("vision")
        none = np.zeros((0, 1), np.float32)
        rows = [
            self._engine.merge(row, np.concatenate([next(embeds) for _ in some]) if some else none)
            for row, some in zip(ids, opened)
        ]
        logits, run = self._engine.start(rows, new_tokens)
        clock.lap("prefill")
        stop_ids = self.manifest.generation.eos_token_ids
        steps = list(decode(logits, run.step, greedy, stop_ids, new_tokens))
        clock.lap("decode")
        timings = clock.laps | {"tokens_per_second": max(0, len(steps) - 1) * len(rows) / clock.laps["decode"]}
        answers = [[token for token in row if token is not None] for row in zip(*steps)]
        return [self._generation(answer, len(row), some, timings) for answer, row, some in zip(answers, ids, opened)]

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
        self, ids: list[int], prompt_tokens: int, pictures: list[Image.Image], timings: dict[str, float]
    ) -> Generation:
        text = self._prompts.decode(ids)
        format = self.manifest.grounding
        return Generation(
            text=text,
            token_ids=ids,
            finish_reason="stop" if ids[-1] in self.manifest.generation.eos_token_ids else "length",
            prompt_tokens=prompt_tokens,
            boxes=grounding.boxes(text, format, *pictures[0].size) if format and pictures else [],
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


def _pictures(images: Sequence[Images | None] | None, prompts: int) -> list[list[ImageInput]]:
    """A list of pictures for each prompt."""
    if not prompts:
        raise InputError("the list of prompts is empty; give at least one prompt")
    if images is None:
        images = [None] * prompts
    if isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray)) or len(images) != prompts:
        given = len(images) if isinstance(images, (list, tuple)) else 1
        raise InputError(
            f"{prompts} prompts need {prompts} entries of images, {given} given; a list counts as one entry"
        )
    return [[] if some is None else list(some) if isinstance(some, (list, tuple)) else [some] for some in images]
