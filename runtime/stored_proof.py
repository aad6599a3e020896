"""The proof that a bundle carries, read from its files: prompts, images, and what the source model made of them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..graphs import BundleError, contract
from ..graphs.contract import TensorSpec
from ..graphs.manifest import Loss, Manifest, VectorLoss

#: Errors that the libraries for .npz and .png files raise for a damaged one.
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Case:
    """A prompt, an image, and the arrays that the source model made of them.

    Attributes:
        expected: `input_ids` (tokens,); inputs and outputs of vision encoder and projector under their names;
            `token_ids` (new tokens,) and the `logits` (new tokens, vocab) before each; in the first case of a bundle
            that makes masks, `mask_codes` and `masks` too. Where the prompt is a query, in place of tokens and logits
            the `vectors` (tokens, width) of the image as a page, and `query_ids` and `query_vectors` of the query.
    """

    prompt: str
    image: Image.Image
    expected: dict[str, np.ndarray]


@dataclass(frozen=True)
class Evidence:
    """The values that a bundle is compared with.

    Attributes:
        cases: prompts and images, and what the source model made of them.
        loss: what rounding the bundle's weights costs; None where it changes none, or it is not known.
        rounded: whether the source model had the bundle's rounded weights.
    """

    cases: list[Case]
    loss: Loss | VectorLoss | None = None
    rounded: bool = True


def read(manifest: Manifest, folder: Path) -> Evidence:
    """The proof of a bundle.

    Raises:
        BundleError: if a file of it is missing or damaged, or its arrays do not fit the bundle's graphs.
    """
    prompts = manifest.proof.prompts or (manifest.proof.prompt,)
    try:
        with np.load(folder / contract.PROOF_ARRAYS, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        images = [_image(folder / contract.proof_image(index)) for index in range(len(prompts))]
    except DAMAGED as error:
        raise BundleError(f"the proof in {folder} does not load: {error}; export the bundle again") from None
    cases, problems = [], []
    for index, (prompt, image) in enumerate(zip(prompts, images)):
        start = f"{index}/" if manifest.proof.prompts else ""
        expected = {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
        problems += [f"{start}{problem}" for problem in _problems(expected, manifest)]
        cases.append(Case(prompt, image, expected))
    if problems:
        raise BundleError(
            f"{folder / contract.PROOF_ARRAYS} does not fit the bundle; export it again:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return Evidence(cases, manifest.proof.loss, bool(manifest.proof.prompts))


def write(folder: Path, cases: list[Case]) -> None:
    """Write the files of a proof into the bundle at `folder`."""
    (folder / contract.PROOF_ARRAYS).parent.mkdir()
    arrays = {}
    for index, case in enumerate(cases):
        case.image.save(folder / contract.proof_image(index))
        arrays |= {f"{index}/{name}": array for name, array in case.expected.items()}
    np.savez(folder / contract.PROOF_ARRAYS, **arrays)


def _image(path: Path) -> Image.Image:
    with Image.open(path, formats=("PNG",)) as image:
        return image.copy()


def _problems(expected: Mapping[str, np.ndarray], manifest: Manifest) -> Iterator[str]:
    """The problems of the arrays of one case."""
    graphs, width = manifest.graphs, manifest.vocab
    specs = [
        TensorSpec(contract.INPUT_IDS, "int64", ("tokens",)),
        *graphs[contract.VISION_ENCODER].inputs,
        *graphs[contract.VISION_ENCODER].outputs,
        *graphs[contract.PROJECTOR].outputs,
    ]
    paired = [(contract.TOKEN_IDS, contract.LOGITS, "new tokens")]
    if manifest.vectors is not None:
        paired = [(contract.INPUT_IDS, contract.VECTORS, "tokens")]
        paired += [(contract.QUERY_IDS, contract.QUERY_VECTORS, "tokens")]
    for ids, rows, axis in paired:
        specs += [TensorSpec(ids, "int64", (axis,)), TensorSpec(rows, "float32", (axis, width))]
    if contract.MASKS in expected and contract.MASK_DECODER in manifest.graphs:
        specs += [*manifest.graphs[contract.MASK_DECODER].inputs, *manifest.graphs[contract.MASK_DECODER].outputs]
    for spec in specs:
        if spec.name not in expected:
            yield f"{spec.name}: missing"
            continue
        array = expected[spec.name]
        stored = TensorSpec(spec.name, array.dtype.name, array.shape)
        if not spec.fits(stored):
            yield f"{stored} should be {spec}"
        elif not array.size:
            yield f"{stored} is empty"
    for ids, rows, _ in paired:
        if len({len(expected[name]) for name in (ids, rows) if name in expected}) > 1:
            yield f"{ids} and {rows} differ in length"
