"""What an image or video processor of transformers does, read from its settings into a manifest's recipes."""

from __future__ import annotations

from typing import Any

from ...graphs import CheckpointError
from ...graphs.manifest import Pixels, Resize

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


def pixels(settings: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """How a processor scales and normalises; `mean` and `std` are its class's, for settings that leave them out."""
    resample = settings.get("resample", 3)
    if not settings.get("do_resize", True) or resample not in RESAMPLE:
        raise CheckpointError(
            f"the image processor has do_resize {settings.get('do_resize', True)} and resample {resample!r};"
            f" it must resize, with resample one of {sorted(RESAMPLE)}"
        )
    normalise = settings.get("do_normalize", True)
    return Pixels(
        resample=RESAMPLE[resample],
        rescale_factor=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, settings.get("image_mean") or mean)) if normalise else (0.0,) * 3,
        std=tuple(map(float, settings.get("image_std") or std)) if normalise else (1.0,) * 3,
    )


def square(size: Any, default: int) -> tuple[int, int]:
    """Height and width of a processor's `size`, which may be a number or leave the default."""
    if size is None:
        return default, default
    if isinstance(size, int):
        return size, size
    if {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    raise CheckpointError(f"the processor resizes to {size}; only a fixed height and width are supported")


def resize(
    settings: dict[str, Any], default: int, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
) -> Resize:
    """The recipe of a processor that resizes every picture to one size."""
    height, width = square(settings.get("size"), default)
    return Resize("resize", height, width, pixels(settings, mean, std))
