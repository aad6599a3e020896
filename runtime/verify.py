"""Compare a bundle with the proof that it carries: every file, every stage, every token."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..graphs import BundleError, contract, manifest
from ..graphs.manifest import Manifest
from ..graphs.precision import CACHES, PRECISIONS
from . import stored_proof
from .images.tiles import grid_of, tiles
from .inference.stages import Loaded, Stages
from .model import VLM
from .providers.load_options import LoadOptions
from .stored_proof import Case, Evidence
from .text.prompt import EncodedPrompt

#: For pixels: without torchvision, transformers resizes with Pillow, which rounds some grey levels differently.
PIXELS = 1e-3


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: a stage, or a file.
        precision: of the graph that was run, "" where none was.
        error: of a stage the norm of the difference by the norm of what was expected, of all cases together, for logits
            less their mean; of tokens how far the worst other one lies below the expected one, as a share of the
            largest logit.
        tolerance: the largest error that passes.
        note: what a reader should know besides.
    """

    name: str
    precision: str
    error: float
    tolerance: float
    note: str = ""

    def json(self) -> dict[str, str | float | bool | None]:
        """The fields for JSON. It has no infinity: an infinite error becomes null."""
        fields = dataclasses.asdict(self) | {"passed": self.passed}
        return fields | {"error": self.error if math.isfinite(self.error) else None}

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def verify(
    bundle: str | os.PathLike[str],
    options: LoadOptions | None = None,
    expected: Evidence | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Compare a bundle's files with their checksums and its stages with the results of the source model.

    Each stage is fed what the source model's stage before it gave, so that an error is seen where it arises.

    Args:
        bundle: the folder that an export wrote.
        options: where its graphs are to run; `LoadOptions()` if None.
        expected: what the source model made of prompts and images; if None the bundle's proof.
        progress: called with the name of each step.

    Raises:
        BundleError: if the bundle cannot be loaded, or has no proof and nothing is `expected`.
    """
    folder, tell = Path(bundle), progress or (lambda _: None)
    bundle_manifest = manifest.load(folder)
    if bundle_manifest.proof is None and expected is None:
        raise BundleError(
            f"{folder} carries no proof, it was exported with --no-prove; compare it with --checkpoint, or export again"
        )
    checks = list(_files(bundle_manifest, folder, tell))
    if not all(check.passed for check in checks):
        return checks
    evidence = expected or stored_proof.read(bundle_manifest, folder)
    tell("load")
    vlm = VLM(folder, options)
    checks.append(Check("provider", "", 0.0, 0.0, "; ".join((vlm.provider, *vlm.passed_over))))
    for check in compare(Loaded(vlm.pipeline.prompts, vlm.pipeline.engine), evidence):
        tell(check.name)
        checks.append(check)
    return checks


def _files(bundle_manifest: Manifest, folder: Path, tell: Callable[[str], None]) -> Iterator[Check]:
    """One check of all files; or one for each file that differs from what was written."""
    damaged = []
    for name, file in bundle_manifest.files.items():
        tell(name)
        if manifest.sha256(folder / name) != file.sha256:
            damaged.append(name)
    size = sum(file.size for file in bundle_manifest.files.values())
    if not damaged:
        yield Check("files", "", 0.0, 0.0, f"{len(bundle_manifest.files)} files, {size / 1e6:.1f} MB, as written")
    for name in damaged:
        yield Check(name, "", 1.0, 0.0, "sha256 is not that of the manifest; export the bundle again")


def encode(stages: Stages, prompt: str, image: Image.Image) -> EncodedPrompt:
    """Encode a prompt and an image of a proof, or the page alone. The image is cut into few tiles."""
    recipe, page = stages.manifest.image, stages.manifest.vectors
    if isinstance(recipe, manifest.Tiles):
        recipe = dataclasses.replace(recipe, max_tiles=min(recipe.max_tiles, contract.PROOF_TILES))
    if isinstance(recipe, manifest.Grid):
        edge = min(recipe.longest_edge, int(contract.PROOF_EDGE * recipe.size))
        recipe = dataclasses.replace(recipe, longest_edge=edge)
    written = prompt if page is None else page.page
    return stages.prompts.encode(written, [tiles(image, recipe)], [], [grid_of(*image.size, recipe)])


def compare(stages: Stages, evidence: Evidence) -> Iterator[Check]:
    """Compare each stage, all cases of the evidence together."""
    cases = evidence.cases
    encoded = [encode(stages, case.prompt, case.image) for case in cases]
    wrong = next((index for index, case in enumerate(cases) if not _same_ids(encoded[index], case)), None)
    note = f"{' and '.join(str(len(prompt.ids)) for prompt in encoded)} ids"
    if wrong is not None:
        note = f"{encoded[wrong].ids} not {cases[wrong].expected[contract.INPUT_IDS]}"
    yield Check(contract.INPUT_IDS, "", float(wrong is not None), 0.0, note)

    def expected(name: str) -> np.ndarray:
        return np.concatenate([case.expected[name] for case in cases])

    def allowed(graph: str) -> tuple[str, float]:
        return _allowed(stages, evidence, graph)

    pixels = np.concatenate([tile for prompt in encoded for tile in prompt.tiles])
    yield Check(contract.PIXEL_VALUES, "", _error(pixels, expected(contract.PIXEL_VALUES)), PIXELS)
    features = stages.encode(expected(contract.PIXEL_VALUES))
    error = _error(features, expected(contract.VISION_FEATURES))
    precision, tolerance = allowed(contract.VISION_ENCODER)
    yield Check(contract.VISION_FEATURES, precision, error, tolerance)
    embeds = stages.project(expected(contract.VISION_FEATURES))
    precision, tolerance = allowed(contract.PROJECTOR)
    yield Check(contract.IMAGE_EMBEDS, precision, _error(embeds, expected(contract.IMAGE_EMBEDS)), tolerance)
    if contract.MASKS in cases[0].expected and contract.MASK_DECODER in stages.manifest.graphs:
        masks = stages.masks(cases[0].expected[contract.MASK_CODES])
        precision, tolerance = allowed(contract.MASK_DECODER)
        yield Check(contract.MASKS, precision, _error(masks, cases[0].expected[contract.MASKS]), tolerance)
    if wrong is None:
        yield from compare_decoder(stages, evidence, encoded)


def compare_decoder(stages: Stages, evidence: Evidence, encoded: Sequence[EncodedPrompt]) -> Iterator[Check]:
    """Compare what the decoder makes of the encoded prompts of the evidence's cases."""
    loss = evidence.loss.error if evidence.loss else 0.0
    checks = _answers if stages.manifest.vectors is None else _vectors
    yield from checks(stages, encoded, evidence.cases, *_allowed(stages, evidence, contract.DECODER, loss))


def _allowed(stages: Stages, evidence: Evidence, graph: str, loss: float = 0.0) -> tuple[str, float]:
    """The precision of a graph, and the largest error that passes."""
    precision = stages.manifest.precision
    rows = [PRECISIONS[precision[graph]]]
    if graph == contract.DECODER and contract.KV_CACHE in precision:
        rows.append(CACHES[precision[contract.KV_CACHE]])
    return rows[0].name, max(row.logits_tolerance(loss) if evidence.rounded else row.loss_refused for row in rows)


def _same_ids(encoded: EncodedPrompt, case: Case) -> bool:
    """Whether ids are the same, but for those that image embeddings replace."""
    ids, embeds = case.expected[contract.INPUT_IDS], case.expected[contract.IMAGE_EMBEDS]
    if len(encoded.ids) != len(ids) or encoded.is_image.sum() != np.prod(embeds.shape[:2]):
        return False
    return np.array_equal(encoded.ids[~encoded.is_image], ids[~encoded.is_image])


def _answers(
    stages: Stages, encoded: Sequence[EncodedPrompt], cases: Sequence[Case], precision: str, tolerance: float
) -> Iterator[Check]:
    """Compare the logits of prefills and steps, which run the source's tokens, and the tokens that they choose."""
    embeds = [case.expected[contract.IMAGE_EMBEDS] for case in cases]
    tokens = [case.expected[contract.TOKEN_IDS] for case in cases]
    ours = _centred(stages.answers(encoded, embeds, tokens))
    expected = _centred([case.expected[contract.LOGITS] for case in cases])
    typical = float(np.linalg.norm(expected)) / len(expected) ** 0.5  # of one row: those of an unsure model are small
    rows = np.arange(len(expected))
    prefills = np.cumsum([0, *map(len, tokens)])[:-1]
    for name, selected in (("prefill logits", prefills), ("step logits", np.delete(rows, prefills))):
        if len(selected):
            error = _error(ours[selected], expected[selected], typical * len(selected) ** 0.5)
            yield Check(name, precision, error, tolerance, f"{len(selected)} {name.split()[0]}s")
    our_tokens, source_tokens = ours.argmax(-1), expected.argmax(-1)
    margins = expected[rows, source_tokens] - expected[rows, our_tokens]
    shares = margins / np.maximum(np.abs(expected).max(-1), np.finfo(np.float32).tiny)
    worst, other = int(shares.argmax()), int((our_tokens != source_tokens).sum())
    note = f"{len(source_tokens) - other} of {len(source_tokens)} equal"
    if other:
        instead = f"{our_tokens[worst]} instead of {source_tokens[worst]}"
        note += f"; token {worst + 1}: {instead}, margin {margins[worst]:.3g}"
    yield Check("tokens", precision, float(shares[worst]), tolerance, note)


def _vectors(
    stages: Stages, encoded: Sequence[EncodedPrompt], cases: Sequence[Case], precision: str, tolerance: float
) -> Iterator[Check]:
    """Compare the vectors of pages and of queries."""
    queries = [stages.prompts.encode_query(case.prompt, stages.manifest.vectors) for case in cases]
    equal = all(
        np.array_equal(query.ids, case.expected[contract.QUERY_IDS]) for query, case in zip(queries, cases, strict=True)
    )
    yield Check(contract.QUERY_IDS, "", float(not equal), 0.0, f"{' and '.join(str(len(q.ids)) for q in queries)} ids")
    stages_of = {contract.VECTORS: (encoded, [[case.expected[contract.IMAGE_EMBEDS]] for case in cases])}
    stages_of |= {contract.QUERY_VECTORS: (queries, [[] for _ in cases])} if equal else {}
    for name, fed in stages_of.items():
        ours = np.concatenate(stages.vectors(*fed))
        yield Check(name, precision, _error(ours, np.concatenate([case.expected[name] for case in cases])), tolerance)


def _centred(logits: Sequence[np.ndarray]) -> np.ndarray:
    """The logits (tokens, vocab) of all cases, each row less its mean."""
    rows = np.concatenate(logits)
    return rows - rows.mean(-1, keepdims=True)


def _error(ours: np.ndarray, expected: np.ndarray, scale: float | None = None) -> float:
    """The norm of the difference divided by `scale`, or by the norm of `expected` if None.

    It is infinite if the shapes differ or a value is not finite.
    """
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return float("inf")
    scale = float(np.linalg.norm(expected)) if scale is None else scale
    return float(np.linalg.norm(ours - expected)) / max(scale, float(np.finfo(np.float32).tiny))
