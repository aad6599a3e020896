"""Engines built ahead of the first answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..graphs import ProviderError, contract, manifest
from .inference.engine import Engine
from .providers import cuda, tensorrt
from .providers import targets as providers
from .providers.table import PROVIDERS

BUILDERS = [row.name for row in PROVIDERS.values() if row.builds_engines]


def warmup(
    bundle: Path,
    provider: str = "tensorrt",
    provider_options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Build a bundle's engines, or find them built, and run each once; returns the folder that keeps them.

    Args:
        bundle, provider_options: as for `load()`.

    Raises:
        BundleError: if the bundle cannot be loaded.
        ProviderError: if the provider builds no engines, or cannot be used.
    """
    if provider not in BUILDERS:
        raise ProviderError(f"provider {provider!r} builds nothing ahead; supported: {', '.join(BUILDERS)}")
    found = manifest.load(bundle)
    progress("build engines, which takes minutes the first time")
    (target,) = providers.targets(provider, options=provider_options)
    engine = Engine(bundle, found, [target])
    progress("run each once")
    (tiles,) = found.graphs[contract.VISION_ENCODER].inputs
    embeds = engine.encode_images(np.zeros((1, *tiles.shape[1:]), tiles.dtype))
    _, run = engine.start([embeds.reshape(-1, embeds.shape[-1])], 1)
    run.step(np.zeros(1, np.int64), np.zeros(1, np.int64))
    if engine.draws_masks:
        (codes,) = found.graphs[contract.MASK_DECODER].inputs
        engine.masks(np.zeros((1, *codes.shape[1:]), codes.dtype))
    return tensorrt.engine_folder(found, cuda.machine(target.device_id))
