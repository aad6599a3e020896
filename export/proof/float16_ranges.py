"""float16 graphs: which values are too large for float16, found by running a written bundle, and the graphs redone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

from ...graphs import ExportError, contract
from ...graphs.transforms import float16
from ...runtime.verify import encode
from .bundle_in_parts import OnDisk, Values

#: Values of more than a quarter of float16's largest stay in float32: other images may make larger ones.
LIMIT = float16.LARGEST / 4
LOGITS = 64  #: positions of a prompt whose logits are looked at, at most; a row of logits takes a megabyte


def narrow(folder: Path, names: list[str], prompts: Sequence[str], image: Image.Image) -> dict[str, tuple[str, ...]]:
    """Make the named graphs of a bundle, whose weights are float16, compute in it; returns the nodes kept in float32.

    The ranges are those of `image`, of its mirror image and of noise, with the prompts in turn.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*image.size[::-1], 3), np.uint8)
    images = [image, Image.fromarray(np.asarray(image)[:, ::-1]), Image.fromarray(noise)]
    largest = _largest(OnDisk(folder), prompts, images)
    float32_nodes = {}
    for name in names:
        path = folder / f"{name}.onnx"
        model = ir.load(path)
        wide = tuple(float16.too_large(model, largest[name], LIMIT))
        float32_nodes[name] = wide
        if any(value.producer().name in wide for value in model.graph.outputs if contract.is_present(value.name)):
            raise ExportError(f"{name}: keys or values are too large for a float16 cache; choose --precision bf16")
        float16.compute_in_float16(model, wide)
        ir.save(model, path)
    return float32_nodes


def _largest(bundle: OnDisk, prompts: Sequence[str], images: list[Image.Image]) -> dict[str, dict[str, float]]:
    """The largest magnitude of each value of each graph."""
    encoded = [encode(bundle, prompts[index % len(prompts)], image) for index, image in enumerate(images)]
    largest = {}

    def run(graph: str, calls: list[Values]) -> list[Values]:
        names: dict[str, str] = {}
        results = bundle.run(graph, calls, lambda part: names.update(float16.add_ranges(part)))
        inputs = {name: max(float(np.abs(call[name]).max()) for call in calls) for name in calls[0]}
        ranges = {value: max(float(result[name]) for result in results) for value, name in names.items()}
        largest[graph] = inputs | ranges
        return results

    tiles = [{contract.PIXEL_VALUES: np.concatenate(prompt.tiles)} for prompt in encoded]
    features = run(contract.VISION_ENCODER, tiles)
    features = [{contract.VISION_FEATURES: values[contract.VISION_FEATURES]} for values in features]
    embeds = [values[contract.IMAGE_EMBEDS] for values in run(contract.PROJECTOR, features)]
    calls = [bundle.calls(prompt, [rows], np.zeros(1, np.int64))[0] for prompt, rows in zip(encoded, embeds)]
    if (recipe := bundle.manifest.vectors) is not None:
        queries = [bundle.prompts.encode_query(text, recipe) for text in prompts]
        calls += [bundle.calls(query, [], np.zeros(1, np.int64))[0] for query in queries]
    for call in calls:
        length = call[contract.INPUTS_EMBEDS].shape[1]
        call[contract.LOGITS_INDICES] = np.arange(0, length, 1 + length // LOGITS)[None]
    run(contract.DECODER, calls)
    return largest
