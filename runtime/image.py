"""Pictures: read from whatever a user has, turned into the tiles a vision encoder takes. NumPy and Pillow only."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..graphs import InputError
from ..graphs.manifest import Resize

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"


def read(image: ImageInput) -> Image.Image:
    """A picture as RGB: files and bytes are turned upright by their EXIF tag, transparency is laid on white.

    Args:
        image: a path, the bytes of a file, a Pillow image (taken as it is) or an array (height, width, 3) of uint8.

    Raises:
        InputError: if there is no such file, it is no picture, or the array has another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return _rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"a picture given as an array is (height, width, 3) of uint8, not {image.shape} of {image.dtype}"
            )
        return Image.fromarray(image)
    if isinstance(image, bytes):
        return _open(io.BytesIO(image), f"the {len(image)} bytes given")
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.exists():
            raise InputError(f"there is no picture {path}; check the path")
        if not path.is_file():
            raise InputError(f"{path} is no file; give the path of a picture")
        return _open(path, str(path))
    raise InputError(f"a picture is a path, bytes, a Pillow image or a uint8 array, not {type(image).__name__}")


def _open(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture in a format that Pillow {Image.__version__} reads") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: too large ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: the picture cannot be read: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def tiles(image: Image.Image, recipe: Resize) -> np.ndarray:
    """The tiles of an RGB picture, (tiles, 3, height, width) of float32."""
    resample = Image.Resampling[recipe.resample.upper()]
    resized = image.resize((recipe.width, recipe.height), resample)
    # One multiplication and one addition a value, from (x * rescale_factor - mean) / std.
    std = np.asarray(recipe.std, np.float64)
    factor = np.float32(recipe.rescale_factor / std)
    offset = np.float32(-np.asarray(recipe.mean) / std)
    pixels = np.asarray(resized, np.float32)
    return np.ascontiguousarray((pixels * factor + offset).transpose(2, 0, 1)[None])
