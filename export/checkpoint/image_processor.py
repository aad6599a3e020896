"""Settings of an image or video processor of transformers, read into a manifest's recipes."""

from __future__ import annotations

from ...graphs.manifest import Crop, PixelScaling, Resize
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


def crop(
    settings: Settings, default: int, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
) -> Resize | Crop:
    """The recipe of a processor that resizes the shorter side of an image and cuts its middle out, as CLIP's does.

    Raises:
        CheckpointError: if it would make pictures of different sizes, or fill some up at their edges.
    """
    if settings.get("do_pad"):
        settings.refuse("do_pad", "false: pictures that are filled up at their edges are not supported")
    size = settings.get("size")
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        whole = resize(settings, default, mean, std)
        crops = settings.flag("do_center_crop", True)
        if crops and square(settings, "crop_size", default) != (whole.height, whole.width):
            settings.refuse("crop_size", f"the height and width of size, {whole.height} and {whole.width}")
        return whole
    if isinstance(size, dict):
        if size.keys() != {"shortest_edge"}:
            settings.refuse("size", "a shortest_edge, or a height and a width; no others are supported")
        edge = settings.section("size").integer("shortest_edge", default)
    else:
        edge = settings.integer("size", default)
    if not settings.flag("do_center_crop", True):
        settings.refuse("do_center_crop", "true: pictures that keep their ratio have to be cut to one size")
    height, width = square(settings, "crop_size", default)
    if max(height, width) > edge:
        settings.refuse("crop_size", f"a height and width of at most {edge}, the shortest_edge of size")
    return Crop(edge, height, width, pixels(settings, mean, std))


def resize(
    settings: Settings, default: int, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
) -> Resize:
    """The recipe of a processor that resizes every image to one size."""
    height, width = square(settings, "size", default)
    return Resize(height, width, pixels(settings, mean, std))
