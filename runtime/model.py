"""load() and VLM: pictures and prompts in, answers out."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Unpack, overload

import numpy as np

from ..graphs import InputError, contract, manifest
from . import entities, grounding, image, video
from .detokenize import Reader
from .engine import Engine
from .entities import PhraseBoxes
from .grammar import Constraint, Grammar, grammar
from .grounding import Mask
from .inputs import Images, Request, Videos, is_batch, requests
from .options import Options, Settings, settle
from .prompt import Encoded, PromptInput, Prompts
from .results import Clock, Generation
from .strategy import Answer, answer
from .stream import Stream, fold

Size = tuple[int, int]


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
        **options: Unpack[Options],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Sequence[PromptInput],
        images: Sequence[Images | None] | None = None,
        videos: Sequence[Videos | None] | None = None,
        *,
        bboxes: Sequence[PhraseBoxes | None] | None = None,
        **options: Unpack[Options],
    ) -> list[Generation]: ...

    def generate(self, prompt, images=None, videos=None, *, bboxes=None, **options):
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
            options: max_new_tokens, do_sample, temperature, top_k, top_p, min_p, repetition_penalty,
                no_repeat_ngram_size, num_beams, num_return_sequences, length_penalty, early_stopping, stop, constrain,
                seed: see `Options`.

        Raises:
            InputError: for a picture that cannot be read, a prompt that is too long, lists that do not match, an option
                that cannot be.
        """
        settings = settle(options, self.manifest.generation)
        answers = fold(self._answer(requests(prompt, images, videos, bboxes), settings, self._reader(settings)))
        return answers if is_batch(prompt) else answers[0]

    def stream(
        self,
        prompt: PromptInput,
        images: Images | None = None,
        videos: Videos | None = None,
        *,
        bboxes: PhraseBoxes | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Answer one prompt piece by piece. Arguments are those of `generate`; the work begins with the first piece.

        Raises:
            InputError: for several prompts, or several answers; all that `generate` raises comes with the first piece.
        """
        settings = settle(options, self.manifest.generation)
        if is_batch(prompt) or settings.num_return_sequences > 1:
            raise InputError("a stream is of one answer to one prompt; use generate for several")
        reader = self._reader(settings)
        return Stream(self._answer(requests(prompt, images, videos, bboxes), settings, reader), reader)

    def _answer(
        self, asked: list[Request], settings: Settings, reader: Reader
    ) -> Generator[list[tuple[int, int]], None, list[Generation]]:
        """Yield (number, id) of the answers on their way; return them when they have ended."""
        clock = Clock()
        prompts, sizes = zip(*(self._encode(request) for request in asked))
        new_tokens = self._room(max(len(prompt.ids) for prompt in prompts), settings.max_new_tokens)
        settings = dataclasses.replace(settings, max_new_tokens=new_tokens)
        ids = [prompt.ids.tolist() for prompt in prompts]
        constraints = [Constraint(self._grammar, new_tokens, ids)] if settings.constrain else []
        clock.lap("preprocess")
        rows = [self._engine.embed(prompt) for prompt in prompts]
        clock.lap("vision")
        logits, run = self._engine.start(rows, new_tokens, max(settings.num_beams, settings.num_return_sequences))
        clock.lap("prefill")
        found = yield from answer(
            logits, run.keep_and_step, ids, settings,
            self.manifest.generation.eos_token_ids, [reader.stops] if reader.stops else [], constraints,
        )  # fmt: skip
        clock.lap("decode")
        decoded = sum(len(one.ids) - 1 for some in found for one in some)
        timings = clock.laps | {"tokens_per_second": decoded / clock.laps["decode"]}
        return [self._generations(*row, reader, timings) for row in zip(found, prompts, sizes)]

    @functools.cached_property
    def _grammar(self) -> Grammar:
        """Of answers with boxes, made when it is first asked for: it looks at the whole vocabulary."""
        vocab = self.manifest.graphs[contract.DECODER].outputs[0].shape[-1]
        ends = self.manifest.generation.eos_token_ids
        return grammar(self.manifest.grounding, self._prompts.tokenizer, vocab, ends)

    def _reader(self, settings: Settings) -> Reader:
        tagged = isinstance(self.manifest.grounding, manifest.PatchTokens)
        return Reader(self._prompts.detokenizer, tagged, settings.stop)

    def _encode(self, request: Request) -> tuple[Encoded, Size | None]:
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
        room = limits.max_positions - prompt_tokens
        if room < (max_new_tokens or 1):
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, pictures included, and the model {limits.max_positions}"
                f" positions, so {max(0, room)} are left for an answer of {max_new_tokens or 'at least 1'};"
                " shorten the prompt or ask for fewer tokens"
            )
        return max_new_tokens or min(room, limits.max_new_tokens)

    def _generations(
        self, found: list[Answer], prompt: Encoded, size: Size | None, reader: Reader, timings: dict[str, float]
    ) -> Generation:
        """The best answer to a prompt, with the others as its alternatives."""
        best, *others = [self._generation(one, prompt, size, reader, timings) for one in found]
        return dataclasses.replace(best, alternatives=others)

    def _generation(
        self, found: Answer, prompt: Encoded, size: Size | None, reader: Reader, timings: dict[str, float]
    ) -> Generation:
        ids, format = found.ids, self.manifest.grounding
        caption, named, boxes, masks = None, [], [], []
        if isinstance(format, manifest.PatchTokens):
            end = np.flatnonzero(prompt.places)[-1] + 1 if prompt.places.any() else 0
            whole = self._prompts.decode([*prompt.ids[end:], *ids])
            caption, named = entities.read(whole, format, *(size or (1, 1)))
            boxes = [box for entity in named for box in entity.boxes]
        elif format and size:
            text = self._prompts.decode(ids)
            boxes, masks = grounding.boxes(text, format, *size), self._masks(text, format, size)
        stopped = ids[-1] in self.manifest.generation.eos_token_ids or (reader.stops is not None and reader.stops(ids))
        return Generation(
            text=reader.text(ids),
            token_ids=ids,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(prompt.ids),
            boxes=boxes,
            masks=masks,
            caption=caption,
            entities=named,
            score=found.score,
            timings=timings,
        )

    def _masks(self, text: str, format: manifest.LocationTokens, size: Size) -> list[Mask]:
        """The masks of an answer, with pixels if the bundle can make them."""
        masks = grounding.masks(text, format, *size)
        if not masks or not self._engine.draws_masks:
            return masks
        shapes = self._engine.masks(np.array([mask.codes for mask in masks], np.int64))
        return [grounding.filled(mask, shape, *size) for mask, shape in zip(masks, shapes)]
