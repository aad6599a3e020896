"""One call, from inputs to answers: the stages that `VLM`, `Chat`, `verify` and `bench` are made of.

A pipeline holds a loaded bundle and nothing of a call, so any number of calls may share it at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..graphs import contract, manifest
from . import inputs
from .generation import strategy
from .generation.scoring import score
from .grounding.formats import box_format
from .grounding.grammar import Constraint, Grammar, Vocabulary
from .grounding.locations import filled
from .grounding.types import Grounded, Mask, PhraseBoxes
from .inference.engine import Engine
from .inference.image_embeddings import ImageEmbeddingCache
from .inference.run import Logits, Run
from .inputs import Media, Request
from .limits import Limits
from .options import Settings
from .providers.targets import Target
from .results import Generation, StageTimer
from .text.detokenize import Reader
from .text.prompt import EncodedPrompt, PromptInput, Prompts


@dataclass(frozen=True)
class EncodedRequest:
    """A request as the graphs take it.

    Attributes:
        prompt: its ids and tiles.
        size: width and height of its first image in pixels; None without an image.
    """

    prompt: EncodedPrompt
    size: tuple[int, int] | None = None


#: Computes the logits (prompts, vocab) after prompts, with room for new tokens and for several answers to each.
Prefill: TypeAlias = Callable[[Sequence[EncodedPrompt], int, int, StageTimer], tuple[Logits, Run]]
#: Yields the (answer number, id) pairs of each step; returns the answers at its end.
Answering: TypeAlias = Generator[list[tuple[int, int]], None, list[Generation]]


class Pipeline:
    """The stages of a call over a loaded bundle.

    Args:
        folder: the bundle.
        targets: the providers that it may run on, the best first.
        limits: bounds of each call.
        embedding_folder: keeps image embeddings on disk too; None keeps them in memory alone.

    Attributes:
        manifest: the bundle's description.
        prompts: tokenizer and prompt format.
        engine: the graphs.
        image_embeddings: encodes tiles, and remembers the embeddings of those that it has seen.
        boxes: how the model writes boxes.
    """

    def __init__(
        self, folder: Path, targets: Sequence[Target], limits: Limits, embedding_folder: str | PathLike[str] | None
    ) -> None:
        self.manifest = manifest.load(folder)
        self.limits = limits
        tile_tokens = self.manifest.tile_tokens
        with ThreadPoolExecutor(1) as pool:  # loading a large vocabulary takes as long as loading the graphs
            prompts = pool.submit(Prompts, folder, self.manifest.prompt, tile_tokens)
            self.engine = Engine(folder, self.manifest, targets, limits.vision_memory)
            self.prompts = prompts.result()
        self.boxes = box_format(self.manifest.grounding)
        encoders = (contract.VISION_ENCODER, contract.PROJECTOR)
        checksums = [file.sha256 for name, file in self.manifest.files.items() if name.startswith(encoders)]
        self.image_embeddings = ImageEmbeddingCache(
            self.engine.encode_images,
            (tile_tokens, self.manifest.hidden),
            limits.embedding_memory,
            embedding_folder,
            model=" ".join(checksums),
        )

    def encode(self, request: Request) -> EncodedRequest:
        """Read a request's images and videos, and encode its prompt."""
        about = self.read_media(request.images, request.videos)
        return self.encode_prompt(request.prompt, about, request.bboxes)

    def read_media(self, images: Sequence, videos: Sequence) -> Media:
        """Images and videos as tiles."""
        return inputs.read(images, videos, self.manifest, self.limits)

    def encode_prompt(self, prompt: PromptInput, about: Media, bboxes: PhraseBoxes | None = None) -> EncodedRequest:
        """Encode a prompt about images and videos that have been read."""
        if bboxes is not None:
            prompt = self.boxes.with_boxes(prompt, bboxes)
        return EncodedRequest(self.prompts.encode(prompt, about.images, about.videos), about.size)

    def new_reader(self, settings: Settings) -> Reader:
        """A reader of one answer's text."""
        return Reader(self.prompts.detokenizer, self.boxes.tagged, settings.stop)

    def prefill(
        self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, copies: int, timer: StageTimer
    ) -> tuple[Logits, Run]:
        """Run the prompts through the graphs; the images of all of them are encoded together.

        Returns:
            The logits (prompts, vocab) after the prompts, and the run, with room for `copies` answers to each.
        """
        embeds = iter(self.image_embeddings([tiles for prompt in prompts for tiles in prompt.tiles]))
        rows = [self.engine.merge(prompt, [next(embeds) for _ in prompt.tiles]) for prompt in prompts]
        timer.lap("vision")
        prefilled = self.engine.start(rows, max_new_tokens, copies)
        timer.lap("prefill")
        return prefilled

    def answer(
        self,
        encoded: Sequence[EncodedRequest],
        settings: Settings,
        reader: Reader,
        *,
        prefill: Prefill | None = None,
        timer: StageTimer | None = None,
    ) -> Answering:
        """Answer requests, step by step.

        Args:
            reader: tells where a stop string ends an answer.
            prefill: runs the prompts, in place of `Pipeline.prefill`.
            timer: was started when the work began; a new one if None.
        """
        timer = timer or StageTimer()
        prompts = [request.prompt for request in encoded]
        ids = [prompt.counted for prompt in prompts]
        copies = max(settings.num_beams, settings.num_return_sequences)
        settings = dataclasses.replace(
            settings, max_new_tokens=self.allowed_new_tokens(prompts, settings.max_new_tokens, copies)
        )
        constraints = [Constraint(self.grammar, settings.max_new_tokens, ids)] if settings.constrain else []
        timer.lap("preprocess")
        logits, run = (prefill or self.prefill)(prompts, settings.max_new_tokens, copies, timer)
        stops = [reader.stops] if reader.stops else []
        answers = yield from strategy.answer(
            logits, run.step, ids, settings, self.manifest.generation.eos_token_ids, stops, constraints
        )
        timer.lap("decode")
        decoded = sum(len(answer.ids) - 1 for alternatives in answers for answer in alternatives)
        timings = timer.laps | {"tokens_per_second": decoded / timer.laps["decode"]}
        return [self._generation(*row, reader, timings) for row in zip(answers, encoded)]

    def score(self, encoded: EncodedRequest, candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of given answers to a request: those of each one's ids, and at last that of its end."""
        new_tokens = self.allowed_new_tokens([encoded.prompt], max(map(len, candidates)) + 1, len(candidates))
        logits, run = self.prefill([encoded.prompt], new_tokens, len(candidates), StageTimer())
        return score(logits, run.step, candidates, self.manifest.generation.eos_token_ids)

    @functools.cached_property
    def grammar(self) -> Grammar:
        """The grammar of answers with boxes. Made when it is first needed: it reads the whole vocabulary."""
        ends = self.manifest.generation.eos_token_ids
        return self.boxes.grammar(Vocabulary(self.prompts.tokenizer, self.manifest.vocab, ends))

    def allowed_new_tokens(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int | None, copies: int) -> int:
        """How many tokens an answer may have.

        Raises:
            InputError: if the call goes beyond a limit.
        """
        longest = max(len(prompt.ids) for prompt in prompts)
        rows = len(prompts) * copies
        new_tokens = self.limits.room(longest, max_new_tokens, self.manifest.generation)
        tokens = longest + new_tokens
        self.limits.check_memory(self.engine.memory(len(prompts), longest, rows, tokens), rows, tokens)
        return new_tokens

    def _generation(
        self, answers: list[strategy.Answer], encoded: EncodedRequest, reader: Reader, timings: dict[str, float]
    ) -> Generation:
        """The best answer to a request, with the others as its alternatives."""
        best, *others = [self._one_generation(answer, encoded, reader, timings) for answer in answers]
        return dataclasses.replace(best, alternatives=others)

    def _one_generation(
        self, answer: strategy.Answer, encoded: EncodedRequest, reader: Reader, timings: dict[str, float]
    ) -> Generation:
        ids = answer.ids
        grounded = self._grounded(ids, encoded)
        stopped = ids[-1] in self.manifest.generation.eos_token_ids or (reader.stops is not None and reader.stops(ids))
        return Generation(
            text=reader.text(ids),
            token_ids=ids,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(encoded.prompt.ids),
            boxes=grounded.boxes,
            masks=self._drawn(grounded.masks, encoded.size),
            caption=grounded.caption,
            entities=grounded.entities,
            score=answer.score,
            timings=timings,
        )

    def _grounded(self, ids: list[int], encoded: EncodedRequest) -> Grounded:
        """The boxes of an answer."""
        if self.boxes.reads_prompt:
            is_image = np.flatnonzero(encoded.prompt.is_image)
            text_start = is_image[-1] + 1 if len(is_image) else 0
            ids = [*encoded.prompt.ids[text_start:], *ids]
        return self.boxes.read(self.prompts.decode(ids), encoded.size)

    def _drawn(self, masks: list[Mask], size: tuple[int, int] | None) -> list[Mask]:
        """The masks of an answer, with pixels if the bundle can make them."""
        if not masks or size is None or contract.MASK_DECODER not in self.manifest.graphs:
            return masks
        codes = np.array([mask.codes for mask in masks], np.int64)
        shapes = self.engine.run_extra(contract.MASK_DECODER, codes)
        return [filled(mask, shape, *size) for mask, shape in zip(masks, shapes)]
