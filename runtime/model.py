"""load() and VLM: images and prompts in, answers out; or, of a bundle that embeds, vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np

from ..graphs import InputError
from .chat import Chat
from .grounding.types import PhraseBoxes
from .hub.find import find
from .inputs import Images, Request, Videos, check_answers, is_batch, listed, requests
from .limits import Limits
from .memory import give_back
from .options import Options, Settings, resolve
from .pipeline import Answering, Pipeline
from .providers.load_options import LoadOptions
from .providers.placement import Placement
from .results import Generation, Score, StageTimer
from .retrieval import Embedder
from .stream import Stream, fold
from .text.detokenize import Reader
from .text.prompt import PromptInput


def load(
    bundle: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    provider_options: Mapping[str, Any] | None = None,
    allow_fallback: bool = False,
    *,
    limits: Limits | None = None,
    embedding_folder: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    look_ahead: bool = True,
    expand_weights: bool = False,
    share_weights: bool = False,
) -> VLM:
    """Load a bundle. The model may be used from several threads at once.

    Args:
        bundle: the folder that an export wrote; or a text "user/name", the id of a bundle on the Hub, if there is no
            such folder. It is fetched into the Hub's cache, once. Needs the extra `hub`. Or a URL that fsspec opens.
        provider: "cpu", "cuda" or "tensorrt", which runs there or is an error; or "auto", the best that runs:
            `VLM.provider` says which that is.
        threads: threads for one operator on the CPU; None for one a core, or fewer where a container has a quota of
            processor time.
        provider_options: options of the provider by name; `runtime/providers/options.py` lists them.
        allow_fallback: let nodes run on the CPU that the provider has no kernel for; `VLM.placement` counts them.
        limits: what a call may ask for; those of `Limits()` if None.
        embedding_folder: where image embeddings are kept on disk too, for other processes and later ones, without a
            limit. None for nowhere.
        revision: for an id, a branch, a tag or a commit of its repository.
        look_ahead, expand_weights, share_weights: see `LoadOptions`.

    Raises:
        BundleError: if the bundle is incomplete, damaged or of another format, or is not there.
        InputError: if the folder for embeddings or that for shared weights cannot be written; for an unknown provider
            option or an invalid value.
        ProviderError: if the provider cannot be used, or leaves nodes to the CPU and that is not allowed; it says
            what is missing and how to get it.
        VLMError: if the Hub cannot be reached.
    """
    options = LoadOptions(
        provider, threads, provider_options or {}, allow_fallback, look_ahead, expand_weights, share_weights
    )
    return VLM(find(bundle, revision), options, limits, embedding_folder)


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
        options: LoadOptions | None = None,
        limits: Limits | None = None,
        embedding_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.pipeline = Pipeline(folder, options or LoadOptions(), self.limits, embedding_folder)
        give_back()  # what reading the vocabulary and laying out the weights took for a while
        self.manifest = self.pipeline.manifest
        engine = self.pipeline.engine
        self.provider = engine.target.provider
        self.placement: Mapping[str, Placement] = engine.placement
        self.passed_over = tuple(engine.passed_over)

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
        """Answer a prompt about images; or several prompts at once.

        Args:
            prompt: the prompt as the model's authors write it, without image placeholders; where the bundle has a chat
                template, one user turn, or a list of chat messages. Or a list of prompts.
            images: an image or a list of them: a path, the bytes of a file, a Pillow image or an array
                (height, width, 3) of uint8. For a list of prompts, a list with one entry, or a list, for each.
            videos: a video or a list of them: the path of a file or of a folder with an image a frame, the bytes of a
                file, or an array (frames, height, width, 3) of uint8. For a list of prompts as with `images`.
            bboxes: for each `<phrase>` of the prompt its boxes, where the model takes them: None, a box or a list of
                boxes; a box is two patch indices, or xmin, ymin, xmax, ymax in 0..1.
            options: see `Options`.

        Raises:
            InputError: for an image that cannot be read, a prompt that is too long, lists that do not match, or an
                invalid option.
        """
        settings = resolve(options, self.manifest.generation)
        asked = requests(prompt, images, videos, bboxes)
        answers = fold(self._answer(asked, settings, self.pipeline.new_reader(settings)))
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
        settings = resolve(options, self.manifest.generation)
        if is_batch(prompt) or settings.num_return_sequences > 1:
            raise InputError("a stream is of one answer to one prompt; use generate for several")
        reader = self.pipeline.new_reader(settings)
        return Stream(self._answer(requests(prompt, images, videos, bboxes), settings, reader), reader)

    def chat(self, images: Images | None = None, videos: Videos | None = None) -> Chat:
        """A conversation about images and videos, as `generate` takes them: `chat.ask(...)` again and again.

        They are encoded once. Where a token sees only what stands before it, the cache of earlier turns is kept.
        """
        check_answers(self.manifest)
        return Chat(self.pipeline, images, videos)

    def _answer(self, asked: Sequence[Request], settings: Settings, reader: Reader) -> Answering:
        timer = StageTimer()
        encoded = [self.pipeline.encode(request) for request in asked]
        return (yield from self.pipeline.answer(encoded, settings, reader, timer=timer))

    def embed(
        self,
        images: Images | None = None,
        queries: str | Sequence[str] | None = None,
        *,
        pool_factor: int = 1,
        dtype: str = "float32",
    ) -> list[np.ndarray]:
        """The vectors of pages or of queries, where the bundle is of the kind "embedding". Queries need no image graph.

        Args:
            images: a page or a list of pages, each an image as for `generate`.
            queries: a text or a list of texts, as a user writes them.
            pool_factor: leaves one vector of so many of a page: the mean of those that are alike.
            dtype: "float32"; "float16"; or "int8", the numbers times 127, which are from -1 to 1.

        Returns:
            For each page or query an array (tokens, width) of vectors of length 1; see `late_interaction`.

        Raises:
            InputError: if the bundle answers prompts; for both or none of pages and queries, an image that cannot be
                read, a query that is too long or an invalid option.
        """
        embedder = Embedder(self.manifest, self.pipeline.prompts, self.pipeline.engine, self.limits)
        if (images is None) == (queries is None):
            raise InputError("give either images or queries")
        if queries is None:
            return list(embedder.pages(listed(images), pool_factor, dtype))
        if pool_factor != 1:
            raise InputError(f"pool_factor is {pool_factor!r:.80}, and queries are not pooled; leave it out")
        return embedder.queries(listed(queries), dtype)

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
        texts, ids = zip(*self.pipeline.candidates(candidates))
        (request,) = requests(prompt, images, videos, bboxes)
        likely = self.pipeline.score(self.pipeline.encode(request), ids)
        return [Score(*row) for row in zip(texts, map(sum, likely), ids, likely)]
