"""Pictures: read from whatever a user has, turned into the tiles a vision encoder takes. NumPy and Pillow only."""

from __future__ import annotations

import io
import math
import os
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...graphs import InputError
from ...graphs.manifest import Pixels, Resize, Tiles
from ..limits import MAX_PIXELS
from .resize import resize

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

_warnings = threading.Lock()  #: `warnings.catch_warnings` changes what all threads see


def read(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB: files and bytes are turned upright by their EXIF tag, transparency is laid on white.

    Args:
        image: a path, the bytes of a file, a Pillow image (taken as it is) or an array (height, width, 3) of uint8.
        max_pixels: a picture of more is refused before it is decoded.

    Raises:
        InputError: if there is no such file, it is no picture or too large, or the array has another shape or dtype.
    """
    if isinstance(image, Image.Image):
        check_size(*image.size, "the picture given", max_pixels)
        return _rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"a picture given as an array is (height, width, 3) of uint8, not {image.shape} of {image.dtype}"
            )
        check_size(*image.shape[1::-1], "the array given", max_pixels)
        return Image.fromarray(image)
    if isinstance(image, bytes):
        return _open(io.BytesIO(image), f"the {len(image)} bytes given", max_pixels)
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.exists():
            raise InputError(f"there is no picture {path}; check the path")
        if not path.is_file():
            raise InputError(f"{path} is no file; give the path of a picture")
        return _open(path, str(path), max_pixels)
    raise InputError(f"a picture is a path, bytes, a Pillow image or a uint8 array, not {type(image).__name__}")


def _open(source: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with _warnings, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            opened = Image.open(source)  # reads the header only
        with opened as image:
            check_size(*image.size, name, max_pixels)
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return _rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture in a format that Pillow {Image.__version__} reads") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too large ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: the picture cannot be read: {error}") from None


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise an InputError for a picture of more than `max_pixels`."""
    if width * height > max_pixels:
        raise InputError(
            f"{name}: too large, {width} x {height} pixels; the limit max_pixels is {max_pixels}: give a smaller one"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def tiles(image: Image.Image, recipe: Resize | Tiles) -> np.ndarray:
    """The tiles of an RGB picture, (tiles, 3, height, width) of float32."""
    resample = recipe.pixels.resample
    shape = image.height, image.width
    planes = [np.frombuffer(image.tobytes("raw", channel), np.uint8).reshape(shape) for channel in "RGB"]
    if isinstance(recipe, Resize):
        return normalise(resize(planes, recipe.height, recipe.width, resample)[None], recipe.pixels)
    size = recipe.size
    columns, rows = canvas(*image.size, size, recipe.max_tiles)
    whole = resize(planes, rows * size, columns * size, resample).reshape(3, rows, size, columns, size)
    thumbnail = resize(planes, size, size, resample)
    parts = whole.transpose(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    return normalise(np.concatenate([thumbnail[None], parts]), recipe.pixels)


def normalise(levels: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Grey levels (tiles, 3, height, width) of uint8 as pixel values of float32."""
    # One multiplication and one addition a value, from (level * rescale_factor - mean) / std.
    std = np.asarray(pixels.std, np.float64)
    factor = np.float32(pixels.rescale_factor / std)
    offset = np.float32(-np.asarray(pixels.mean) / std)
    values = levels * factor[:, None, None]
    values += offset[:, None, None]
    return values


@lru_cache
def _arrangements(max_tiles: int) -> dict[float, list[tuple[int, int]]]:
    """Columns and rows of every canvas by their ratio, in the order that settles ties: most tiles, fewest columns."""
    found: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_tiles, 0, -1):
        for columns in (number for number in range(1, count + 1) if count % number == 0):
            found.setdefault(columns / (count // columns), []).append((columns, count // columns))
    return found


def canvas(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of the canvas for a picture of `width` x `height` pixels in tiles of `size`.

    If the picture fits into a canvas as it is: the one in which its shorter edge becomes longest, the last of equals.
    If not: the closest ratio that is no wider than a wide picture and wider than a tall one, with the most tiles.
    Arithmetic and order are those of the source model's image processor in transformers, so that ties fall as there.
    """
    ratio = width / height
    best, longest = None, 0.0
    for columns, rows in (pair for pairs in _arrangements(max_tiles).values() for pair in pairs):
        if columns * size < width or rows * size < height:
            continue
        factor = min(columns * size / width, rows * size / height)
        if ratio > 1:
            edge = math.floor(factor * width / ratio)
        else:
            edge = factor * height if ratio == 1 else math.floor(factor * height * ratio)
        if best is None or edge >= longest:
            best, longest = (columns, rows), edge
    if best is not None:
        return best
    ratios = _arrangements(max_tiles)
    if ratio >= 1:
        return max(ratios[max(key for key in ratios if key <= ratio)], key=lambda pair: pair[0])
    return max(ratios[min(key for key in ratios if key > ratio)], key=lambda pair: pair[1])
