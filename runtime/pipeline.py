"""One call, from inputs to answers: the stages that `VLM`, `Chat`, `verify` and `bench` are made of.

A pipeline holds a loaded bundle and nothing of a call, so any number of calls may share it at once.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..graphs import InputError, contract, manifest
from ..graphs.sampling import show
from . import inputs
from .assembly import Assembly, EncodedRequest, Regions
from .generation import scoring, strategy
from .generation.lookahead import Earlier, Guesses, drive_ahead
from .generation.steps import Chosen, Steps, drive
from .grounding.constraints import Constraints
from .grounding.formats import box_format
from .grounding.types import PhraseBoxes
from .inference.engine import Engine
from .inference.image_embeddings import ImageEmbeddingCache
from .inference.run import Logits, Run
from .inputs import Media, Request
from .limits import Limits
from .options import Settings
from .providers.load_options import LoadOptions
from .providers.targets import choose_targets
from .results import Generation, StageTimer
from .stream import fold
from .text.detokenize import Reader
from .text.prompt import EncodedPrompt, PromptInput, Prompts

#: Computes the logits (prompts, vocab) after prompts, with room for new tokens and for several answers to each.
Prefill: TypeAlias = Callable[[Sequence[EncodedPrompt], int, int, StageTimer], tuple[Logits, Run]]
#: Yields the ids that each step chooses; returns the answers at its end.
Answering: TypeAlias = Generator[Sequence[Chosen], None, list[Generation]]


class Pipeline:
    """The stages of a call over a loaded bundle.

    Args:
        folder: the bundle.
        options: where its graphs are to run, and how.
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
        self,
        folder: Path,
        options: LoadOptions,
        limits: Limits,
        embedding_folder: str | PathLike[str] | None,
    ) -> None:
        targets, begun = choose_targets(options), threading.Event()
        self.manifest = manifest.load(folder)
        self.limits = limits
        tile_tokens = self.manifest.tile_tokens
        with ThreadPoolExecutor(1) as pool:
            engine = pool.submit(Engine, folder, self.manifest, targets, limits.vision_memory, options, begun.set)
            engine.add_done_callback(lambda _: begun.set())
            begun.wait()  # a large vocabulary takes as long as the graphs, and lets no Python code run meanwhile
            self.prompts = Prompts(folder, self.manifest.prompt, tile_tokens)
            self.engine = engine.result()
        # Tokens that run together see each other where attention is bidirectional.
        self._looks_ahead = options.look_ahead and self.manifest.causal
        self._earlier = Earlier()
        self.boxes = box_format(self.manifest.grounding)
        self._constraints = Constraints(self.manifest, self.prompts, self.boxes)
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
        """Read a request's images and videos, if that has not been done, and encode its prompt."""
        about = self.read_media(request.images, request.videos) if request.media is None else request.media
        return self.encode_prompt(request.prompt, about, request.bboxes)

    def read_media(self, images: Sequence, videos: Sequence) -> Media:
        """Images and videos as tiles."""
        return inputs.read(images, videos, self.manifest, self.limits)

    def encode_prompt(self, prompt: PromptInput, about: Media, bboxes: PhraseBoxes | None = None) -> EncodedRequest:
        """Encode a prompt about images and videos that have been read."""
        inputs.check_answers(self.manifest)
        if bboxes is not None:
            prompt = self.boxes.with_boxes(prompt, bboxes)
        encoded = self.prompts.encode(prompt, about.images, about.videos, about.grids, about.times)
        return EncodedRequest(encoded, about.size)

    def new_reader(self, settings: Settings) -> Reader:
        """A reader of one answer's text."""
        return Reader(self.prompts.detokenizer, self.boxes.tagged, settings.stop)

    def embed(self, prompts: Sequence[EncodedPrompt]) -> list[np.ndarray]:
        """Embeddings (tokens, hidden) of each prompt; the images of all of them are encoded together."""
        embeds = iter(self.image_embeddings([tiles for prompt in prompts for tiles in prompt.tiles]))
        return [self.engine.merge(prompt, [next(embeds) for _ in prompt.tiles]) for prompt in prompts]

    def prefill(
        self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, copies: int, timer: StageTimer
    ) -> tuple[Logits, Run]:
        """Run the prompts through the graphs.

        Returns:
            The logits (prompts, vocab) after the prompts, and the run, with room for `copies` answers to each.
        """
        rows = self.embed(prompts)
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
        copies = settings.copies
        settings = dataclasses.replace(
            settings, max_new_tokens=self.allowed_new_tokens(prompts, settings.max_new_tokens, copies)
        )
        search = self.new_search(prompts, settings, reader)
        timer.lap("preprocess")
        logits, run = (prefill or self.prefill)(prompts, settings.max_new_tokens, copies, timer)
        guesses = self.guesses(prompts, settings, self._earlier)
        if guesses is None:
            answers = yield from drive(search(logits), run.step)
        else:
            answers = yield from drive_ahead(search(logits), run, guesses, settings.max_new_tokens)
        timer.lap("decode")
        return self.generations(answers, encoded, reader, timer)

    def new_search(
        self, prompts: Sequence[EncodedPrompt], settings: Settings, reader: Reader
    ) -> Callable[[Logits], Steps[list[list[strategy.Answer]]]]:
        """What searches for answers from the logits (prompts, vocab) after the prompts.

        Raises:
            InputError: for an end that the model does not have, and if what answers are constrained to has no room.
        """
        assert settings.max_new_tokens is not None
        ends_last, vocab = settings.forced_eos_token_id, self.manifest.vocab
        if any(token >= vocab for token in ends_last):
            raise InputError(
                f"forced_eos_token_id is {show(ends_last)}; this model has {vocab} ids, give ids below that"
            )
        ids = [prompt.counted for prompt in prompts]
        constraints, forced = self._constraints.filters(settings.constrain, ids, settings.max_new_tokens)
        stops = [reader.stops] if reader.stops else []
        ends = self.manifest.generation.eos_token_ids
        return lambda logits: strategy.answer(logits, ids, settings, ends, stops, constraints, forced)

    def guesses(self, prompts: Sequence[EncodedPrompt], settings: Settings, earlier: Earlier) -> Guesses | None:
        """What guesses tokens of the answer to prompts; None where there are several, or guesses cannot be checked."""
        if not (self._looks_ahead and self.engine.on_host) or len(prompts) * settings.copies > 1:
            return None
        return Guesses(prompts[0].ids[~prompts[0].is_image].tolist(), earlier)

    def generations(
        self,
        answers: Sequence[list[strategy.Answer]],
        encoded: Sequence[EncodedRequest],
        reader: Reader,
        timer: StageTimer,
    ) -> list[Generation]:
        """The answers to each request, the best with the others as its alternatives."""
        decoded = sum(len(answer.ids) - 1 for alternatives in answers for answer in alternatives)
        timings = timer.laps | {"tokens_per_second": decoded / timer.laps["decode"]}
        assembly = Assembly(self.manifest, self.prompts, self.boxes, self.engine, reader, timings)
        return [assembly.generation(*row) for row in zip(answers, encoded)]

    def regions(self, encoded: EncodedRequest) -> Regions:
        """Reads what answers to a request say of regions."""
        return Regions(self.prompts, self.boxes, self.engine, encoded)

    def score(self, encoded: EncodedRequest, candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of given answers to a request: those of each one's ids, and at last that of its end."""
        new_tokens = self.allowed_new_tokens([encoded.prompt], max(map(len, candidates)) + 1, len(candidates))
        logits, run = self.prefill([encoded.prompt], new_tokens, len(candidates), StageTimer())
        return fold(drive(self.scoring(logits, candidates), run.step))

    def candidates(self, candidates: Iterable[str]) -> list[tuple[str, list[int]]]:
        """Answers to be scored: the text of each and its ids.

        Raises:
            InputError: if they are no texts, or one has an end token in it.
        """
        if isinstance(candidates, str) or not isinstance(candidates, Iterable):
            raise InputError(f"candidates are a list of texts, not {candidates!r:.80}")
        candidates = list(candidates)
        if not candidates or not all(isinstance(text, str) for text in candidates):
            raise InputError(f"candidates are a list of texts, at least one, not {candidates!r:.80}")
        ids = [self.prompts.ids(text) for text in candidates]
        ends = self.manifest.generation.eos_token_ids
        if any(token in ends for candidate in ids for token in candidate):
            raise InputError(f"an end token is in candidates {candidates!r:.80}; leave it out, it is added to each")
        return list(zip(candidates, ids))

    def scoring(self, logits: Logits, candidates: Sequence[Sequence[int]]) -> Steps[list[list[float]]]:
        """What scores answers from the logits (1, vocab) after a prompt."""
        return scoring.score(logits, candidates, self.manifest.generation.eos_token_ids)

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
