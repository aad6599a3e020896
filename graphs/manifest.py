"""manifest.json: what a bundle is and how to run it. Written by export, read strictly by runtime.

It describes behaviours (how a picture is resized, what stands around a prompt), never a family of models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import contract, manifest_checks, migrations
from . import shape_profile as profile
from . import strict_json as strict
from .contract import GraphSpec
from .errors import BundleError
from .sampling import Sampling

FORMAT = migrations.FORMAT
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class PixelScaling:
    """How a picture is resized, and how its grey levels become numbers: (level * rescale_factor - mean) / std."""

    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Resize:
    """A picture becomes one tile: RGB, resized to `height` x `width` whatever its shape."""

    kind: Literal["resize"]
    height: int
    width: int
    pixels: PixelScaling


@dataclass(frozen=True)
class Tiles:
    """A picture becomes a thumbnail of one tile, then the `size` x `size` tiles of a canvas that suits its shape, row
    by row; a canvas has at most `max_tiles`."""

    kind: Literal["tiles"]
    size: int
    max_tiles: int
    pixels: PixelScaling


@dataclass(frozen=True)
class Video:
    """`frames` of a video, evenly sampled, or all of a shorter one; each becomes one tile."""

    frames: int
    tile: Resize


@dataclass(frozen=True)
class TextPrompt:
    """The ids of a prompt: those of `start`; for each picture those of `image_start`, its placeholders, those of
    `image_end`; at last those of `before`, the prompt and `after` as one text.

    A placeholder is `image`, with the id `image_token_id`, for each image embedding of the picture. White space around
    the prompt goes if `strip`. A prompt has `min_images` to `max_images` pictures, any number if that is null. With
    `clean_up_spaces` an answer loses the spaces before punctuation and contractions.

    Options that look at the ids of a prompt see `image_token_id` at a placeholder; if `counted_from` is given, they see
    that id at the first placeholder of a picture, and the ids after it at the others.
    """

    kind: Literal["plain"]
    start: str
    image_start: str
    image: str
    image_token_id: int
    image_end: str
    before: str
    after: str
    strip: bool
    clean_up_spaces: bool
    min_images: int
    max_images: int | None
    counted_from: int | None = None


@dataclass(frozen=True)
class ChatPrompt:
    """The ids of a conversation as `chat_template.jinja` writes it, with `special_tokens` as its variables.

    The template puts `image` or `video` once where a picture or video belongs; it is repeated there for each image
    embedding.
    """

    kind: Literal["chat"]
    special_tokens: dict[str, str]
    image: str
    image_token_id: int
    video: str
    video_token_id: int


@dataclass(frozen=True)
class Embedding:
    """Rows of `embed_tokens.npy` are multiplied by `scale`; image embeddings are put in afterwards, as they are."""

    scale: float


@dataclass(frozen=True)
class GenerationDefaults:
    """Ids that end an answer, the longest answer if the caller sets no limit, and other defaults.

    Where there is a `max_length`, prompt and answer together have no more tokens than that if the caller sets no limit.
    """

    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    max_positions: int
    defaults: Sampling
    max_length: int | None = None


@dataclass(frozen=True)
class LocationTokens:
    """Boxes in the answer's text: four tokens (`token` formatted with a bin) in the order of `edges`, then a label.

    A coordinate is bin / `bins` of the picture's height or width. Several boxes are parted by `separator`. Before the
    label may stand the `codes` tokens of a mask, `code` formatted with a number below `code_values`.
    """

    kind: Literal["locations"]
    token: str
    code: str
    codes: int
    code_values: int
    bins: int
    edges: tuple[str, str, str, str]
    separator: str


@dataclass(frozen=True)
class PatchTokens:
    """Boxes in prompt and answer: a phrase between the tags `phrase`, then pairs of tokens between the tags `object`.

    A pair (`token` formatted with a patch) names the upper left and the lower right patch on a grid of `side` x `side`
    patches; pairs are parted by `separator`.
    """

    kind: Literal["patches"]
    token: str
    side: int
    phrase: tuple[str, str]
    object: tuple[str, str]
    separator: str


@dataclass(frozen=True)
class Loss:
    """How far the source model with the bundle's rounded weights is from the source model as it is, on the proof.

    Attributes:
        logits: the norm of the difference of the logits by that of the source's, each row less its mean.
        equal_tokens, tokens: how many of the tokens of the source's answers it chooses too, and how many there are.
        perplexity, source_perplexity: of the source's answers, for the rounded model and for the source itself.
    """

    logits: float
    equal_tokens: int
    tokens: int
    perplexity: float
    source_perplexity: float

    def __str__(self) -> str:
        return (
            f"logits {self.logits:.2g} from the source's, {self.equal_tokens} of {self.tokens} tokens equal,"
            f" perplexity of the source's answers {self.perplexity:.4g} (source {self.source_perplexity:.4g})"
        )


@dataclass(frozen=True)
class Proof:
    """The images and arrays under proof/, one set for each of `prompts`, are of the source model run with the weights
    that the bundle has, rounded as they are; `loss` says what rounding them costs, None where it changes none.

    Older bundles have one `prompt`, and arrays of the source model as it is.
    """

    prompt: str = ""
    prompts: tuple[str, ...] = ()
    loss: Loss | None = None


@dataclass(frozen=True)
class File:
    """Size in bytes and checksum of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Prefill:
    """About what the prefill of a prompt takes besides the KV cache: bytes for each token and for each pair of them."""

    token: int
    pair: int


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime needs to know. `source`, `made_with`, `target` and `float32_nodes` are for people.

    `profiles` has the shapes to build engines for, by graph, where the graphs are made for that. Where `cache` is
    "in_place" a layer's past and present are one buffer; where it is "copied" they are two, and the present is a copy
    of the past with the new tokens in it.

    `float32_nodes` names, by graph, the nodes of a float16 graph that compute in float32 because their values are too
    large. Where it is `causal` a token sees what stands before it; if not, those of a prompt see each other too.
    """

    format: int
    target: str
    source: dict[str, str]
    made_with: dict[str, str]
    precision: dict[str, str]
    float32_nodes: dict[str, tuple[str, ...]]
    graphs: dict[str, GraphSpec]
    profiles: dict[str, profile.Profile]
    cache: Literal["in_place", "copied"]
    image: Resize | Tiles
    video: Video | None
    prompt: TextPrompt | ChatPrompt
    embedding: Embedding
    causal: bool
    prefill: Prefill
    generation: GenerationDefaults
    grounding: LocationTokens | PatchTokens | None
    proof: Proof | None
    files: dict[str, File]

    @property
    def tile_tokens(self) -> int:
        """Image embeddings of a tile."""
        return self.graphs[contract.PROJECTOR].outputs[0].shape[1]

    @property
    def hidden(self) -> int:
        """Width of the embeddings that the decoder takes."""
        return self.graphs[contract.DECODER].inputs[0].shape[-1]

    @property
    def vocab(self) -> int:
        """Number of tokens that the decoder's logits are of."""
        return self.graphs[contract.DECODER].outputs[0].shape[-1]

    def graph_bytes(self, name: str) -> int:
        """Bytes of a graph's files: its nodes and its weights."""
        return sum(file.size for path, file in self.files.items() if path.startswith(f"{name}.onnx"))

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle, of this format or an older one, and the presence and sizes of its files.

    Raises:
        BundleError: with every problem that was found.
    """
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder} is no bundle: it has no {FILE_NAME}; make one with `onnx-vlm export`") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); export the bundle again") from None
    problems: list[str] = []
    manifest = strict.read(Manifest, migrations.migrate(data, path), "", problems)
    if not problems:
        problems = manifest_checks.problems(manifest, folder)
    if problems:
        raise BundleError(f"{folder} cannot be used; export it again:\n" + "\n".join(f"  {p}" for p in problems))
    for name in manifest.files:
        try:
            (folder / name).open("rb").close()
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}") from None
    return manifest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
