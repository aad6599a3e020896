"""A KV cache of int8: how large keys and values become, found by running a written bundle, and its decoder redone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

from ...graphs import contract
from ...graphs.transforms import quantize_cache
from ...runtime.text.prompt import EncodedPrompt
from ...runtime.verify import encode
from .bundle_in_parts import OnDisk, Values

TOKENS = 256  #: of a text of random tokens


def narrow(folder: Path, prompts: Sequence[str], images: Sequence[Image.Image]) -> None:
    """Store the KV cache of a bundle as int8.

    The ranges are those of the images, of the first one's mirror image and of noise, with the prompts in turn, and of
    random tokens.
    """
    path = folder / f"{contract.DECODER}.onnx"
    largest = _largest(OnDisk(folder), prompts, images)
    model = ir.load(path)
    quantize_cache.quantize_cache(model, largest)
    ir.save(model, path)


def _largest(bundle: OnDisk, prompts: Sequence[str], images: Sequence[Image.Image]) -> Values:
    """The largest magnitude of each number of each key and value head, (1, kv_heads, 1, head_dim), by cache input."""
    names: dict[str, str] = {}
    calls = [
        bundle.calls(prompt, embeds, np.zeros(1, np.int64))[0] for prompt, embeds in _cases(bundle, prompts, images)
    ]
    results = bundle.run(contract.DECODER, calls, lambda part: names.update(quantize_cache.add_ranges(part)))
    return {past: np.max([result[name] for result in results], axis=0) for past, name in names.items()}


def _cases(
    bundle: OnDisk, prompts: Sequence[str], images: Sequence[Image.Image]
) -> Iterator[tuple[EncodedPrompt, list[np.ndarray]]]:
    """Prompts and the embeddings of their images."""
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (*images[0].size[::-1], 3), np.uint8))
    mirrored = Image.fromarray(np.asarray(images[0])[:, ::-1])
    for index, image in enumerate([*images, mirrored, noise]):
        prompt = encode(bundle, prompts[index % len(prompts)], image)
        yield prompt, [bundle.project(bundle.encode(np.concatenate(prompt.tiles)))]
    tokens = min(TOKENS, bundle.manifest.generation.max_positions)
    ids = random.integers(0, bundle.manifest.vocab, tokens)
    yield EncodedPrompt(ids, np.zeros(tokens, bool), ids, []), []
