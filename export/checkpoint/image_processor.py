"""Settings of an image or video processor of transformers, read into a manifest's recipes."""

from __future__ import annotations

from ...graphs.manifest import PixelScaling, Resize
from .settings import Settings

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


def pixels(settings: Settings, mean: tuple[float, ...], std: tuple[float, ...]) -> PixelScaling:
    """How a processor scales and normalises; `mean` and `std` are its class's, for settings that leave them out."""
    if not settings.get("do_resize", True):
        settings.refuse("do_resize", "true: only processors that resize are supported")
    resample = settings.get("resample", 3)
    if type(resample) is not int or resample not in RESAMPLE:
        settings.refuse("resample", f"one of {', '.join(f'{code} ({name})' for code, name in RESAMPLE.items())}")
    rescales, normalises = settings.flag("do_rescale", True), settings.flag("do_normalize", True)
    return PixelScaling(
        resample=RESAMPLE[resample],
        rescale_factor=settings.number("rescale_factor", 1 / 255) if rescales else 1.0,
        mean=settings.channels("image_mean", mean) if normalises else (0.0,) * 3,
        std=settings.channels("image_std", std) if normalises else (1.0,) * 3,
    )


def square(settings: Settings, key: str, default: int) -> tuple[int, int]:
    """Height and width of a processor's size under `key`, which may be one number or leave the default."""
    if not isinstance(settings.get(key), dict):
        side = settings.integer(key, default)
        return side, side
    size = settings.section(key)
    if not {"height", "width"} <= size.keys():
        settings.refuse(key, "a fixed height and width; no others are supported")
    return size.integer("height", 0), size.integer("width", 0)


def resize(
    settings: Settings, default: int, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
) -> Resize:
    """The recipe of a processor that resizes every image to one size."""
    height, width = square(settings, "size", default)
    return Resize(height, width, pixels(settings, mean, std))
