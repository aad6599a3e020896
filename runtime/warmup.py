"""Build engines ahead of the first answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..graphs import UnknownProviderError, contract, manifest
from .inference.engine import Engine
from .providers import cuda, tensorrt
from .providers.load_options import LoadOptions
from .providers.table import PROVIDERS
from .providers.targets import choose_targets

BUILDERS = [row.name for row in PROVIDERS.values() if row.builds_engines]


def warmup(
    bundle: Path,
    options: LoadOptions | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Build a bundle's engines unless they are built already, and run each once. Returns the folder that keeps them.

    Args:
        bundle: the folder that an export wrote.
        options: the provider that builds the engines, TensorRT if None, and its options.
        progress: called with the name of each step.

    Raises:
        BundleError: if the bundle cannot be loaded.
        UnknownProviderError: if the provider builds no engines.
        ProviderError: if the provider cannot be used.
    """
    options = options or LoadOptions("tensorrt")
    if options.provider not in BUILDERS:
        raise UnknownProviderError(
            f"provider {options.provider!r} builds nothing ahead; supported: {', '.join(BUILDERS)}"
        )
    contents = manifest.load(bundle)
    progress("build engines, which takes minutes the first time")
    (target,) = choose_targets(options)
    engine = Engine(bundle, contents, [target])
    progress("run each once")
    (tiles,) = contents.graphs[contract.VISION_ENCODER].inputs
    embeds = engine.encode_images(np.zeros((1, *tiles.shape[1:]), tiles.dtype))
    row = embeds.reshape(-1, embeds.shape[-1])
    if contents.kind == "embedding":
        engine.vectors([row])
    else:
        _, run = engine.start([row], 1)
        run.step(np.zeros(1, np.int64), np.zeros(1, np.int64))
    if engine.draws_masks:
        (codes,) = contents.graphs[contract.MASK_DECODER].inputs
        engine.masks(np.zeros((1, *codes.shape[1:]), codes.dtype))
    return tensorrt.engine_folder(contents, cuda.machine(target.device_id))
