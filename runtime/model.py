"""load() and VLM: pictures and prompts in, answers out."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np

from ..graphs import InputError, contract, manifest
from . import media
from .chat import Chat
from .generation.scoring import score
from .generation.strategy import Answer, answer
from .grounding import locations as grounding
from .grounding import patches as entities
from .grounding.grammar import Constraint, Grammar, grammar
from .grounding.locations import Mask
from .grounding.patches import PhraseBoxes
from .inference.engine import Engine, Run
from .inference.image_embeddings import Embeddings
from .inputs import Images, Request, Videos, is_batch, requests
from .limits import Limits
from .media import Media
from .options import Options, Settings, settle
from .providers import targets as providers
from .results import Clock, Generation, Score
from .stream import Stream, fold
from .text.detokenize import Reader
from .text.prompt import Encoded, PromptInput, Prompts

Size = tuple[int, int]
#: prefills prompts, with room for new tokens and for answers to each; returns logits (prompts, vocab) and the run
Start = Callable[[Sequence[Encoded], int, int, Clock], tuple[np.ndarray, Run]]


def load(
    bundle: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    provider_options: Mapping[str, Any] | None = None,
    allow_fallback: bool = False,
    *,
    limits: Limits | None = None,
    embedding_folder: str | os.PathLike[str] | None = None,
) -> VLM:
    """Load a bundle. The model may be used from several threads at once.

    Args:
        bundle: the folder that an export wrote.
        provider: "cpu", "cuda" or "tensorrt", which runs there or is an error; or "auto", the best that runs:
            `VLM.provider` says which that is.
        threads: threads for one operator on the CPU; ONNX Runtime decides if None.
        provider_options: options of the provider by name; `provider_options.OPTIONS` lists them.
        allow_fallback: let nodes run on the CPU that the provider has no kernel for; `VLM.placement` counts them.
        limits: what a call may ask for; those of `Limits()` if None.
        embedding_folder: where image embeddings are kept on disk too, for other processes and later ones, without a
            limit. None for nowhere.

    Raises:
        BundleError: if the bundle is incomplete, damaged or of another format.
        InputError: if the folder for embeddings cannot be made; for a provider option that there is not, or whose value
            cannot be.
        ProviderError: if the provider cannot be used, or leaves nodes to the CPU and that is not allowed; it says
            what is missing and how to get it.
    """
    targets = providers.targets(provider, threads, provider_options, allow_fallback)
    return VLM(Path(bundle), targets, limits or Limits(), embedding_folder)


class VLM:
    """A loaded model. Use `load()`.

    Attributes:
        provider: where it runs: "cpu", "cuda" or "tensorrt".
        placement: for each graph and provider, how many nodes of each operator ONNX Runtime put there.
        passed_over: why "auto" did not take a better provider that the installed ONNX Runtime has; empty if it did.
    """

    def __init__(
        self,
        folder: Path,
        targets: Sequence[providers.Target],
        limits: Limits,
        embedding_folder: str | os.PathLike[str] | None,
    ) -> None:
        self.manifest, self.limits = manifest.load(folder), limits
        tile_tokens = self.manifest.tile_tokens
        with ThreadPoolExecutor(1) as pool:  # a large vocabulary takes as long as the graphs
            prompts = pool.submit(Prompts, folder, self.manifest.prompt, tile_tokens)
            self._engine = Engine(folder, self.manifest, targets, limits.vision_memory)
            self._prompts = prompts.result()
        self.provider = self._engine.target.provider
        self.placement: Mapping[str, providers.Placement] = self._engine.placement
        self.passed_over = tuple(self._engine.passed_over)
        encoders, files = (contract.VISION_ENCODER, contract.PROJECTOR), self.manifest.files.items()
        self._embeddings = Embeddings(
            self._engine.encode_images, limits.embedding_memory, embedding_folder,
            model=" ".join(file.sha256 for name, file in files if name.startswith(encoders)),
        )  # fmt: skip

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
        asked = requests(prompt, images, videos, bboxes)
        answers = fold(self._answer(map(self._encode, asked), settings, self._reader(settings)))
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
        reader, asked = self._reader(settings), requests(prompt, images, videos, bboxes)
        return Stream(self._answer(map(self._encode, asked), settings, reader), reader)

    def chat(self, images: Images | None = None, videos: Videos | None = None) -> Chat:
        """A conversation about pictures and videos, as `generate` takes them: `chat.ask(...)` again and again.

        They are encoded once. Where a token sees only what stands before it, the cache of earlier turns is kept.
        """
        return Chat(self, images, videos)

    def _answer(
        self,
        asked: Iterable[tuple[Encoded, Size | None]],
        settings: Settings,
        reader: Reader,
        start: Start | None = None,
        clock: Clock | None = None,
    ) -> Generator[list[tuple[int, int]], None, list[Generation]]:
        """Yield (number, id) of the answers on their way; return them when they have ended.

        Args:
            asked: prompts, with width and height of the first picture of each.
            start: prefills them, if not `_start`.
            clock: has been running since the work began, if that was before.
        """
        clock = clock or Clock()
        prompts, sizes = zip(*asked)
        copies = max(settings.num_beams, settings.num_return_sequences)
        new_tokens = self._room(prompts, settings.max_new_tokens, copies)
        settings = dataclasses.replace(settings, max_new_tokens=new_tokens)
        ids = [prompt.ids.tolist() for prompt in prompts]
        constraints = [Constraint(self._grammar, new_tokens, ids)] if settings.constrain else []
        clock.lap("preprocess")
        logits, run = (start or self._start)(prompts, new_tokens, copies, clock)
        found = yield from answer(
            logits, run.keep_and_step, ids, settings,
            self.manifest.generation.eos_token_ids, [reader.stops] if reader.stops else [], constraints,
        )  # fmt: skip
        clock.lap("decode")
        decoded = sum(len(one.ids) - 1 for some in found for one in some)
        timings = clock.laps | {"tokens_per_second": decoded / clock.laps["decode"]}
        return [self._generations(*row, reader, timings) for row in zip(found, prompts, sizes)]

    def score(
        self,
        prompt: PromptInput,
        images: Images | None = None,
        candidates: Sequence[str] = (),
        *,
        videos: Videos | None = None,
        bboxes: PhraseBoxes | None = None,
    ) -> list[Score]:
        """How likely given answers to a prompt are, without making any: to choose among labels.

        Args:
            prompt, images, videos, bboxes: of one prompt, as for `generate`.
            candidates: the answers' texts, each made into tokens on its own.

        Returns:
            A score for each candidate, in their order, of the model's own logits, which no option changes.

        Raises:
            InputError: as `generate`, and for candidates that are none.
        """
        if is_batch(prompt):
            raise InputError("candidates are scored for one prompt; call score for each of several")
        if isinstance(candidates, str) or not candidates or not all(isinstance(one, str) for one in candidates):
            raise InputError(f"candidates are a list of texts, at least one, not {candidates!r:.80}")
        ids, ends = [self._prompts.ids(text) for text in candidates], self.manifest.generation.eos_token_ids
        if any(token in ends for one in ids for token in one):
            raise InputError(f"an end token is in candidates {candidates!r:.80}; leave it out, it is added to each")
        (request,) = requests(prompt, images, videos, bboxes)
        encoded, _ = self._encode(request)
        room = self._room([encoded], max(map(len, ids)) + 1, len(ids))
        logits, run = self._start([encoded], room, len(ids), Clock())
        likely = score(logits, run.keep_and_step, ids, ends)
        return [Score(*one) for one in zip(candidates, map(sum, likely), ids, likely)]

    def _start(self, prompts: Sequence[Encoded], new_tokens: int, copies: int, clock: Clock) -> tuple[np.ndarray, Run]:
        """Prefill prompts with room for `copies` answers each; the logits (prompts, vocab) after them, and the run.

        The pictures of all of them are encoded together.
        """
        embeds = iter(self._embeddings([tiles for prompt in prompts for tiles in prompt.tiles]))
        rows = [self._engine.merge(prompt, [next(embeds) for _ in prompt.tiles]) for prompt in prompts]
        clock.lap("vision")
        started = self._engine.start(rows, new_tokens, copies)
        clock.lap("prefill")
        return started

    @functools.cached_property
    def _grammar(self) -> Grammar:
        """Of answers with boxes, made when it is first asked for: it looks at the whole vocabulary."""
        vocab = self.manifest.vocab
        ends = self.manifest.generation.eos_token_ids
        return grammar(self.manifest.grounding, self._prompts.tokenizer, vocab, ends)

    def _reader(self, settings: Settings) -> Reader:
        tagged = isinstance(self.manifest.grounding, manifest.PatchTokens)
        return Reader(self._prompts.detokenizer, tagged, settings.stop)

    def _encode(self, request: Request) -> tuple[Encoded, Size | None]:
        """The prompt of a request, and width and height of its first picture."""
        read = media.read(request.images, request.videos, self.manifest, self.limits)
        return self._prompt(request.prompt, read, request.bboxes), read.size

    def _prompt(self, prompt: PromptInput, about: Media, bboxes: PhraseBoxes | None) -> Encoded:
        """A prompt about pictures and videos."""
        format = self.manifest.grounding
        if bboxes is not None:
            if not isinstance(format, manifest.PatchTokens) or not isinstance(prompt, str):
                raise InputError("this model takes no bboxes; leave them out")
            prompt = entities.with_boxes(prompt, bboxes, format)
        return self._prompts.encode(prompt, about.images, about.videos)

    def _room(self, prompts: Sequence[Encoded], max_new_tokens: int | None, copies: int) -> int:
        """How many tokens may be made after prompts with `copies` answers each, if the limits allow it at all."""
        longest, rows = max(len(prompt.ids) for prompt in prompts), len(prompts) * copies
        new_tokens = self.limits.room(longest, max_new_tokens, self.manifest.generation)
        tokens = longest + new_tokens
        self.limits.check_memory(self._engine.memory(len(prompts), longest, rows, tokens), rows, tokens)
        return new_tokens

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
