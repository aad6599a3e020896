"""Round the 4-bit weights of a written decoder anew, a part of the graph in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

from ...graphs import ExportError, contract, manifest
from ...graphs.transforms import calibrated_rounding, weights
from ...graphs.transforms.calibrated_rounding import Moments
from ...graphs.transforms.quantize_blocks import Packed
from ...runtime.inference.engine import Engine
from ...runtime.providers.load_options import LoadOptions
from ...runtime.providers.targets import choose_targets
from ...runtime.text.prompt import EncodedPrompt
from ...runtime.verify import encode
from ..proof.bundle_in_parts import OnDisk
from .pictures import Pictures

NEW_TOKENS = 24  #: of each answer
#: Of an image's embeddings one in so many is looked at. There are many, and alike: all of them give no better rounding.
IMAGE_ROWS = 4
AT_ONCE = 1 << 25  #: bytes of weights in memory at a time; sums of products of their inputs take more

Case = tuple[EncodedPrompt, Sequence[np.ndarray]]  #: a prompt with the embeddings of its images


def calibrate(
    folder: Path, decoder: ir.Model, pictures: Pictures, examples: tuple[str, ...], tell: Callable[[str], None]
) -> manifest.Calibration:
    """Round the decoder's weights in blocks anew, in its file, by what they are multiplied by in answers to pictures.

    Args:
        folder: the written bundle, with a manifest.
        decoder: its graph, with the weights as they are to be read.
        examples: prompts, where the folder of pictures has none.
        tell: called with the name of each step.
    """
    bundle = OnDisk(folder)
    tell("look at pictures")
    cases = [*_cases(bundle, pictures.questions(examples))]
    tell("answer")
    answers = _answers(folder, bundle.manifest, cases)
    calls, looked_at = [], []
    for (prompt, embeds), tokens in zip(cases, answers):
        steps = bundle.calls(prompt, embeds, tokens)
        rows = np.flatnonzero(~prompt.is_image | (np.arange(len(prompt.ids)) % IMAGE_ROWS == 0))
        # The head is looked at where text is: it computes no logits of images.
        steps[0][contract.LOGITS_INDICES] = np.append(np.flatnonzero(~prompt.is_image[:-1]), len(prompt.ids) - 1)[None]
        calls += steps
        looked_at += [rows, *[np.zeros(1, np.int64)] * (len(steps) - 1)]
    exact = {
        name: value.const_value.weight
        for name, value in decoder.graph.initializers.items()
        if isinstance(value.const_value, Packed)
    }
    parts = [*bundle.parts(contract.DECODER, AT_ONCE)]
    for index, part in enumerate(parts):
        tell(f"calibrate, part {index + 1} of {len(parts)}")
        needed = {value.name for later in parts[index + 1 :] for value in later.graph.inputs}
        moments = _look(part, needed)
        # A part that has the head alone computes nothing that is looked at.
        made = bundle.results(contract.DECODER, part, calls) if part.graph.outputs else ({} for _ in calls)
        for values, rows, results in zip(calls, looked_at, made):
            at_hand = values | results
            for name, seen in moments.items():
                inputs = at_hand[name][0]
                seen.add(inputs if len(inputs) <= len(rows) else inputs[rows])
            kept = {name: array for name, array in at_hand.items() if name in needed}
            values.clear()
            values.update(kept)
        weights.write(_rounded(part, moments, exact))
    return manifest.Calibration(images=len(pictures.paths), prompts=len(pictures.prompts or examples))


def _cases(bundle: OnDisk, questions: Iterator[tuple[Image.Image, str]]) -> Iterator[Case]:
    for image, prompt in questions:
        encoded = encode(bundle, prompt, image)
        if len(encoded.ids) + NEW_TOKENS > bundle.manifest.generation.max_positions:
            raise ExportError(
                f"the prompt {prompt!r:.80} is too long to be calibrated with: {len(encoded.ids)} tokens with its image"
            )
        yield encoded, [bundle.project(bundle.encode(tiles)) for tiles in encoded.tiles]
        if (recipe := bundle.manifest.vectors) is not None:
            yield bundle.prompts.encode_query(prompt, recipe), []


def _answers(folder: Path, description: manifest.Manifest, cases: Sequence[Case]) -> list[np.ndarray]:
    """The ids (new tokens,) of a greedy answer of the bundle to each; of one token where it makes vectors."""
    if description.vectors is not None:
        return [np.zeros(1, np.int64)] * len(cases)
    engine = Engine(folder, description, choose_targets(LoadOptions("cpu")))
    return [_answer(engine, *case) for case in cases]


def _answer(engine: Engine, prompt: EncodedPrompt, embeds: Sequence[np.ndarray]) -> np.ndarray:
    logits, run = engine.start([engine.merge(prompt, [*embeds])], NEW_TOKENS)
    ids = [int(np.asarray(logits).argmax())]
    while len(ids) < NEW_TOKENS and ids[-1] not in engine.manifest.generation.eos_token_ids:
        ids.append(int(np.asarray(run.step(np.zeros(1, np.int64), np.array(ids[-1:]))).argmax()))
    return np.array(ids)


def _products(part: ir.Model) -> list[ir.Node]:
    return [node for node in part.graph if node.op_type == "MatMulNBits"]


def _look(part: ir.Model, needed: set[str]) -> dict[str, Moments]:
    """Let a part return the inputs of its products, and nothing else that no later part needs."""
    inputs = {node.inputs[0]: node.attributes["K"].as_int() for node in _products(part)}
    caches = [value for value in part.graph.outputs if contract.is_present(value.name)]
    kept = [value for value in part.graph.outputs if value.name in needed and value not in inputs]
    made = [value for value in inputs if value.producer() is not None]
    part.graph.outputs[:] = [*caches, *kept, *made]
    return {value.name: Moments(width) for value, width in inputs.items()}


def _rounded(
    part: ir.Model, moments: Mapping[str, Moments], exact: Mapping[str, weights.Weight]
) -> Iterator[weights.Unwritten]:
    """The values of a part's weights, to be written over those in its file. Their scales stay."""
    for node in _products(part):
        inputs, values = node.inputs[0].name, node.inputs[1]
        stored, bits, block_size = (values.const_value, *(node.attributes[n].as_int() for n in ("bits", "block_size")))
        if isinstance(stored, ir.ExternalTensor):  # others have next to no weights
            pieces = calibrated_rounding.pieces(exact[values.name], moments[inputs], bits, block_size)
            yield weights.Unwritten(pieces, [(0, Path(stored.path), stored.offset)], stored.nbytes)
