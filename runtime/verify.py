"""A bundle against the proof that it carries: every file, every stage, every token."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..graphs import BundleError, contract, manifest
from ..graphs.manifest import Manifest
from .images.tiles import tiles
from .model import VLM
from .providers.load_options import LoadOptions
from .text.prompt import Encoded, Prompts

#: The largest relative error of a stage, by its precision. In float32 sums in another order make some 1e-6, a wrong
#: mask, position or scale more than 1e-2; the others are what rounding of weights (and, but for bf16, of inputs) makes.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.01, "fp16": 0.01, "int8": 0.05, "int4": 0.35}
#: Of pixels: where torchvision is missing transformers resizes with Pillow, which rounds some levels otherwise.
PIXELS = 1e-3


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: a stage, or a file.
        precision: of the graph that was run, "" where none was.
        error: of a stage the norm of the difference by the norm of what was expected, for logits less their mean and by
            that of a typical token; of tokens how far the first other one lies below the expected one, as a share of
            the largest logit.
        tolerance: the largest error that passes.
        note: what a reader should know besides.
    """

    name: str
    precision: str
    error: float
    tolerance: float
    note: str = ""

    def json(self) -> dict[str, str | float | bool | None]:
        """For JSON, which has no infinity: an infinite error is null."""
        fields = dataclasses.asdict(self) | {"passed": self.passed}
        return fields | {"error": self.error if math.isfinite(self.error) else None}

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


class Stages(Protocol):
    """What a bundle does, stage by stage, however its graphs are run."""

    manifest: Manifest
    prompts: Prompts

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles (tiles, 3, height, width) to vision features (tiles, patches, vision_width)."""

    def project(self, features: np.ndarray) -> np.ndarray:
        """Vision features (tiles, patches, vision_width) to image embeddings (tiles, image_tokens, hidden)."""

    def masks(self, codes: np.ndarray) -> np.ndarray:
        """Codes (masks, codes) to masks (masks, height, width), where the bundle has a decoder of masks."""

    def answer(self, prompt: Encoded, embeds: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The logits (tokens, vocab) after a prompt with these image embeddings and after each of `tokens` (tokens,),
        fed one by one, but the last."""


class Loaded:
    """The stages of a loaded bundle, as an answer runs them."""

    def __init__(self, vlm: VLM) -> None:
        self.manifest, self.prompts, self._engine = vlm.manifest, vlm.pipeline.prompts, vlm.pipeline.engine
        self.encode, self.project, self.masks = self._engine.encode, self._engine.project, self._engine.masks

    def answer(self, prompt: Encoded, embeds: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        first, run = self._engine.start([self._engine.merge(prompt, [embeds])], len(tokens))
        later = (np.asarray(run.step(np.zeros(1, np.int64), tokens[i : i + 1])) for i in range(len(tokens) - 1))
        return np.concatenate([np.asarray(first), *later])


def verify(
    bundle: str | os.PathLike[str],
    options: LoadOptions | None = None,
    expected: tuple[str, Image.Image, Mapping[str, np.ndarray]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Compare a bundle's files with their checksums and its stages with what the source model gave.

    Each stage is fed what the source model's stage before it gave, so that an error is seen where it arises.

    Args:
        bundle: the folder that an export wrote.
        options: where its graphs are to run; `LoadOptions()` if None.
        expected: prompt, picture and the source's arrays; if None those of the bundle's proof.
        progress: called with the name of each step.

    Raises:
        BundleError: if the bundle cannot be loaded, or has no proof and nothing is `expected`.
    """
    folder, tell = Path(bundle), progress or (lambda _: None)
    found = manifest.load(folder)
    if found.proof is None and expected is None:
        raise BundleError(
            f"{folder} carries no proof, it was exported with --no-prove; compare it with --checkpoint, or export again"
        )
    checks = list(_files(found, folder, tell))
    if not all(check.passed for check in checks):
        return checks
    prompt, picture, arrays = expected or bundle_proof(found, folder)
    tell("load")
    vlm = VLM(folder, options)
    checks.append(Check("provider", "", 0.0, 0.0, "; ".join((vlm.provider, *vlm.passed_over))))
    for check in compare(Loaded(vlm), prompt, picture, arrays):
        tell(check.name)
        checks.append(check)
    return checks


def _files(found: Manifest, folder: Path, tell: Callable[[str], None]) -> Iterator[Check]:
    """One check of all files, or one for each that is not what was written."""
    damaged = []
    for name, file in found.files.items():
        tell(name)
        if manifest.sha256(folder / name) != file.sha256:
            damaged.append(name)
    size = sum(file.size for file in found.files.values())
    if not damaged:
        yield Check("files", "", 0.0, 0.0, f"{len(found.files)} files, {size / 1e6:.1f} MB, as written")
    for name in damaged:
        yield Check(name, "", 1.0, 0.0, "sha256 is not that of the manifest; export the bundle again")


def bundle_proof(found: Manifest, folder: Path) -> tuple[str, Image.Image, dict[str, np.ndarray]]:
    """Prompt, picture and the source model's arrays that a bundle carries; a BundleError if they do not load."""
    try:
        with np.load(folder / contract.PROOF_ARRAYS) as arrays, Image.open(folder / contract.PROOF_PICTURE) as picture:
            return found.proof.prompt, picture.copy(), dict(arrays)
    except (OSError, ValueError) as error:
        raise BundleError(f"the proof in {folder} does not load: {error}; export the bundle again") from None


def encode(stages: Stages, prompt: str, picture: Image.Image) -> Encoded:
    """Prompt and picture of a proof, which is cut into few tiles."""
    recipe = stages.manifest.image
    if isinstance(recipe, manifest.Tiles):
        recipe = dataclasses.replace(recipe, max_tiles=min(recipe.max_tiles, contract.PROOF_TILES))
    return stages.prompts.encode(prompt, [tiles(picture, recipe)], [])


def compare(stages: Stages, prompt: str, picture: Image.Image, expected: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """One check a stage, of a prompt and picture and what the source model made of them."""
    encoded, ids = encode(stages, prompt, picture), expected[contract.INPUT_IDS]
    # Image embeddings take the place of whatever ids a processor puts there.
    same = len(encoded.ids) == len(ids) and np.array_equal(encoded.ids[~encoded.places], ids[~encoded.places])
    yield Check(contract.INPUT_IDS, "", float(not same), 0.0, f"{len(ids)} ids" if same else f"{encoded.ids} not {ids}")
    for name, part, compute in (
        (contract.PIXEL_VALUES, "", lambda: np.concatenate(encoded.tiles)),
        (contract.VISION_FEATURES, contract.VISION_ENCODER, lambda: stages.encode(expected[contract.PIXEL_VALUES])),
        (contract.IMAGE_EMBEDS, contract.PROJECTOR, lambda: stages.project(expected[contract.VISION_FEATURES])),
    ):
        error = _error(compute(), expected[name])
        chosen = stages.manifest.precision.get(part, "")
        yield Check(name, chosen, error, TOLERANCES.get(chosen, PIXELS))
    if contract.MASKS in expected:
        error = _error(stages.masks(expected[contract.MASK_CODES]), expected[contract.MASKS])
        chosen = stages.manifest.precision[contract.MASK_DECODER]
        yield Check(contract.MASKS, chosen, error, TOLERANCES[chosen])
    if same:
        yield from _answer(stages, encoded, expected)


def _answer(stages: Stages, encoded: Encoded, expected: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """The logits of prefill and steps, which are fed the expected tokens, and the tokens that they choose."""
    precision = stages.manifest.precision[contract.DECODER]
    tolerance = TOLERANCES[precision]
    tokens, wanted = expected[contract.TOKEN_IDS], expected[contract.LOGITS]
    logits = stages.answer(encoded, expected[contract.IMAGE_EMBEDS], tokens)
    centred, wanted = (values - values.mean(-1, keepdims=True) for values in (logits, wanted))
    typical = float(np.linalg.norm(wanted)) / len(wanted) ** 0.5  # of one row: those of an unsure model are small
    yield Check("prefill logits", precision, _error(centred[:1], wanted[:1], typical), tolerance)
    if len(tokens) > 1:
        error = _error(centred[1:], wanted[1:], typical * (len(tokens) - 1) ** 0.5)
        yield Check("step logits", precision, error, tolerance, f"{len(tokens) - 1} steps")
    chosen = centred.argmax(-1)
    if (chosen == tokens).all():
        yield Check("tokens", precision, 0.0, tolerance, f"{len(tokens)} of {len(tokens)} equal")
        return
    place = int((chosen != tokens).argmax())
    margin = abs(wanted[place, tokens[place]] - wanted[place, chosen[place]])
    share = float(margin / np.abs(wanted[place]).max())
    note = f"token {place + 1} of {len(tokens)}: {chosen[place]} instead of {tokens[place]}, margin {margin:.3g}"
    yield Check("tokens", precision, share, tolerance, note)


def _error(ours: np.ndarray, expected: np.ndarray, scale: float | None = None) -> float:
    """The norm of the difference by `scale`, by that of `expected` if None; infinite if there is no such thing."""
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return float("inf")
    scale = float(np.linalg.norm(expected)) if scale is None else scale
    return float(np.linalg.norm(ours - expected)) / max(scale, float(np.finfo(np.float32).tiny))
