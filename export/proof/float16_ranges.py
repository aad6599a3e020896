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
    kept = {}
    for name in names:
        path = folder / f"{name}.onnx"
        model = ir.load(path)
        kept[name] = tuple(float16.too_large(model, largest[name], LIMIT))
        if any(value.producer().name in kept[name] for value in model.graph.outputs if contract.is_present(value.name)):
            raise ExportError(f"{name}: keys or values are too large for a float16 cache; choose --precision bf16")
        float16.compute_in_float16(model, kept[name])
        ir.save(model, path)
    return kept


def _largest(bundle: OnDisk, prompts: Sequence[str], images: list[Image.Image]) -> dict[str, dict[str, float]]:
    """The largest magnitude of each value of each graph."""
    encoded = [encode(bundle, prompts[index % len(prompts)], image) for index, image in enumerate(images)]
    largest = {}

    def run(graph: str, calls: list[Values]) -> list[Values]:
        names: dict[str, str] = {}
        given = bundle.run(graph, calls, lambda part: names.update(float16.add_ranges(part)))
        inputs = {name: max(float(np.abs(call[name]).max()) for call in calls) for name in calls[0]}
        largest[graph] = inputs | {value: max(float(one[name]) for one in given) for value, name in names.items()}
        return given

    seen = run(contract.VISION_ENCODER, [{contract.PIXEL_VALUES: np.concatenate(one.tiles)} for one in encoded])
    seen = run(contract.PROJECTOR, [{contract.VISION_FEATURES: one[contract.VISION_FEATURES]} for one in seen])
    calls = [
        bundle.calls(one, made[contract.IMAGE_EMBEDS], np.zeros(1, np.int64))[0] for one, made in zip(encoded, seen)
    ]
    for call in calls:
        length = call[contract.INPUTS_EMBEDS].shape[1]
        call[contract.LOGITS_INDICES] = np.arange(0, length, 1 + length // LOGITS)[None]
    run(contract.DECODER, calls)
    return largest
