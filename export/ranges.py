"""float16 graphs: which values are too large for float16, found by running a written bundle, and the graphs redone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from PIL import Image

from ..graphs import ExportError, contract, precision
from ..runtime.merge import pad_right
from ..runtime.model import VLM
from ..runtime.verify import encode

#: Values of more than a quarter of float16's largest stay in float32: other pictures than these may make larger ones.
LIMIT = precision.LARGEST / 4

Inputs = dict[str, np.ndarray]


def narrow(folder: Path, names: list[str], prompt: str, image: Image.Image) -> dict[str, tuple[str, ...]]:
    """Make the named graphs of a bundle, whose weights are float16, compute in it; returns the nodes kept in float32.

    The ranges are those of `image`, of its mirror image and of noise, with `prompt`.
    """
    vlm = VLM(folder, "cpu", None)
    noise = np.random.default_rng(0).integers(0, 256, (*image.size[::-1], 3), np.uint8)
    pictures = [image, Image.fromarray(np.asarray(image)[:, ::-1]), Image.fromarray(noise)]
    examples = [_examples(vlm, prompt, picture) for picture in pictures]
    kept = {}
    for name in names:
        path = folder / f"{name}.onnx"
        largest = _largest(path, [example[name] for example in examples])
        model = ir.load(path)
        kept[name] = tuple(precision.too_large(model, largest, LIMIT))
        if any(node.op_type == "GroupQueryAttention" and node.name in kept[name] for node in model.graph):
            raise ExportError(f"{name}: keys or values are too large for a float16 cache; choose --precision bf16")
        precision.narrow(model, kept[name])
        ir.save(model, path)
    return kept


def _examples(vlm: VLM, prompt: str, image: Image.Image) -> dict[str, Inputs]:
    """Inputs of each graph for a picture and a prompt."""
    engine = vlm._engine
    encoded = encode(vlm, prompt, image)
    (tiles,) = encoded.tiles
    features = engine.encode(tiles)
    row = engine.embed(encoded)
    length = len(row)
    spec = vlm.manifest.graphs[contract.DECODER]
    sizes = {"batch": 1, "capacity": length}
    past = {
        one.name: np.zeros([sizes.get(size, size) for size in one.shape], np.float32)
        for one in spec.inputs
        if "capacity" in one.shape
    }
    return {
        contract.VISION_ENCODER: {contract.PIXEL_VALUES: tiles},
        contract.PROJECTOR: {contract.VISION_FEATURES: features},
        contract.DECODER: {
            contract.INPUTS_EMBEDS: pad_right([row]),
            contract.SEQUENCE_LENGTHS: np.array([length - 1], np.int32),
            contract.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
            contract.LOGITS_INDICES: np.arange(length)[None],
            **past,
        },
    }


def _largest(path: Path, examples: list[Inputs]) -> Mapping[str, float]:
    """The largest magnitude of each value of a graph."""
    model = ir.load(path)
    names = precision.add_ranges(model)
    probe = path.with_name("ranges.onnx")
    ir.save(model, probe)
    try:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # every value stays to be seen
        session = ort.InferenceSession(probe, options, ["CPUExecutionProvider"])
        runs = [session.run(list(names.values()), inputs) for inputs in examples]
    finally:
        probe.unlink()
    return {value: float(max(run[place] for run in runs)) for place, value in enumerate(names)}
