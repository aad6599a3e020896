"""manifest.json says what a bundle is and how to run it; the export writes it, the runtime reads it strictly.

It describes behaviours (`recipes`), never a family of models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import contract, manifest_checks, migrations, shape_profile, strict_json
from .contract import GraphSpec
from .errors import BundleError
from .image_recipes import Crop, Crops, Grid, ImageRecipe, PixelScaling, Resize, Tiles, Video
from .loss import Loss, VectorLoss
from .recipes import (
    ChatPrompt,
    CropTexts,
    Embedding,
    FrameTexts,
    GenerationDefaults,
    LocationTokens,
    PatchTokens,
    TextPrompt,
    TileNames,
    Vectors,
)
from .sampling import Sampling

__all__ = [
    "FILE_NAME",
    "FORMAT",
    "Calibration",
    "ChatPrompt",
    "Crop",
    "CropTexts",
    "Crops",
    "Embedding",
    "File",
    "FrameTexts",
    "GenerationDefaults",
    "Grid",
    "ImageRecipe",
    "LocationTokens",
    "Loss",
    "Manifest",
    "PatchTokens",
    "PixelScaling",
    "Prefill",
    "Proof",
    "Resize",
    "Sampling",
    "TextPrompt",
    "TileNames",
    "Tiles",
    "VectorLoss",
    "Vectors",
    "Video",
    "load",
    "read",
    "sha256",
]

FORMAT = migrations.FORMAT
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Proof:
    """The images and arrays under proof/, one set for each of `prompts`, which are queries where pages are embedded.

    The arrays are computed by the source model with the rounded weights that the bundle has. `loss` says how much
    rounding the weights changes, None where it changes none. Older bundles have one `prompt`, and arrays that the
    source model computed with its own weights.
    """

    prompt: str = ""
    prompts: tuple[str, ...] = ()
    loss: Loss | VectorLoss | None = None


@dataclass(frozen=True)
class Calibration:
    """How many images the decoder's weights were rounded for, with how many prompts in turn."""

    images: int
    prompts: int


@dataclass(frozen=True)
class File:
    """Size in bytes and checksum of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Prefill:
    """Memory that a prefill takes besides the KV cache, roughly: bytes for each token, and for each pair of tokens."""

    token: int
    pair: int


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime needs to know of a bundle.

    Attributes:
        source, made_with, target, calibration, float32_nodes: for people alone. `float32_nodes` names, by graph, the
            nodes of a float16 graph that compute in float32 because their values are too large.
        profiles: the shapes to build engines for, by graph; empty for graphs that are not made for that.
        cache: "in_place" where past and present of a layer are one buffer; "copied" where they are two, and the
            present is a copy of the past with the new tokens in it.
        generation: where `vectors` are made, its `max_positions` alone counts.
        causal: whether a token of a prompt sees only the tokens before it, and with `embedding.ahead` those of its
            image; if not, a prompt's tokens see each other.
        vectors: what makes this a bundle of the kind "embedding"; null where it answers.
    """

    format: int
    target: str
    source: dict[str, str]
    made_with: dict[str, str]
    precision: dict[str, str]
    float32_nodes: dict[str, tuple[str, ...]]
    graphs: dict[str, GraphSpec]
    profiles: dict[str, shape_profile.Profile]
    cache: Literal["in_place", "copied"]
    image: ImageRecipe
    video: Video | None
    prompt: TextPrompt | ChatPrompt
    embedding: Embedding
    causal: bool
    prefill: Prefill
    generation: GenerationDefaults
    grounding: LocationTokens | PatchTokens | None
    proof: Proof | None
    files: dict[str, File]
    vectors: Vectors | None = None
    calibration: Calibration | None = None

    @property
    def kind(self) -> Literal["generation", "embedding"]:
        """What the bundle makes: answers, or vectors of pages and queries."""
        return "generation" if self.vectors is None else "embedding"

    @property
    def tile_tokens(self) -> int:
        """The number of image embeddings of a tile."""
        return self.graphs[contract.PROJECTOR].outputs[0].shape[1]

    @property
    def hidden(self) -> int:
        """The width of the embeddings that the decoder takes."""
        return self.graphs[contract.DECODER].inputs[0].shape[-1] - self.embedding.ahead

    @property
    def rounds_cache(self) -> bool:
        """Whether keys and values are rounded as they are written to the KV cache."""
        return contract.KV_CACHE in self.precision

    @property
    def vocab(self) -> int:
        """The number of logits that the decoder returns for a position, or of numbers of a vector."""
        return self.graphs[contract.DECODER].outputs[0].shape[-1]

    def graph_bytes(self, name: str) -> int:
        """The size in bytes of a graph's files: its nodes and its weights."""
        return sum(file.size for path, file in self.files.items() if path.startswith(f"{name}.onnx"))

    def save(self, folder: Path) -> None:
        """Write the manifest into a bundle's folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle, of this format or an older one, and the presence and sizes of its files.

    Raises:
        BundleError: with every problem of the manifest and the files.
    """
    manifest = read(folder)
    _refuse(manifest_checks.problems(manifest, folder), folder)
    for name in manifest.files:
        try:
            (folder / name).open("rb").close()
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}") from None
    return manifest


def read(folder: Path) -> Manifest:
    """Read the manifest of a bundle whose other files may be missing.

    Its fields have the right types, and its files are within the folder; nothing else is checked.

    Raises:
        BundleError: with every problem.
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
    manifest = strict_json.read(Manifest, migrations.migrate(data, path), "", problems)
    _refuse(problems or [*manifest_checks.outside(manifest.files)], folder)
    return manifest


def _refuse(problems: list[str], folder: Path) -> None:
    if problems:
        raise BundleError(f"{folder} cannot be used; export it again:\n" + "\n".join(f"  {p}" for p in problems))


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
