"""Images read from whatever a user has: files of the common formats, bytes, Pillow images and arrays."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...graphs import InputError
from ..limits import MAX_PIXELS

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

#: The common formats by Pillow's names, and the endings of their files. Pillow knows some forty more: one of them (EPS)
#: starts another program, and most are read by code that is little used.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "AVIF": (".avif", ".avifs"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)

_warnings = threading.Lock()  #: `warnings.catch_warnings` changes what all threads see


def read(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as RGB. Files and bytes are turned upright by their EXIF tag; transparency becomes white.

    Args:
        image: a path, the bytes of a file, a Pillow image (taken as it is) or an array (height, width, 3) of uint8.
        max_pixels: an image of more is refused before it is decoded.

    Raises:
        InputError: if there is no such file, it is damaged, too large or of a format that is not in `FORMATS`, or the
            array has another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image, max_pixels)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"an image given as an array is (height, width, 3) of uint8, not {image.shape} of {image.dtype}"
            )
        check_size(*image.shape[1::-1], "the array given", max_pixels)
        return Image.fromarray(image)
    if isinstance(image, bytes):
        return _decoded(io.BytesIO(image), f"the {len(image)} bytes given", max_pixels)
    if isinstance(image, (str, os.PathLike)):
        path = existing(image, "image")
        if not path.is_file():
            raise InputError(f"{path} is no file; give the path of an image")
        return _decoded(path, str(path), max_pixels)
    raise InputError(f"an image is a path, bytes, a Pillow image or a uint8 array, not {type(image).__name__}")


def existing(path: str | os.PathLike[str], kind: str) -> Path:
    """The path of a file or folder that exists.

    Args:
        kind: what it should be, for the error.

    Raises:
        InputError: if it does not exist, cannot be reached, or is empty or a URL.
    """
    text = os.fsdecode(path)
    if not text:
        raise InputError(f"the path of the {kind} is empty; give the path of a file")
    try:
        exists = Path(text).exists()
    except (OSError, ValueError) as error:  # a closed folder, a name that is too long
        if not URL.match(text):
            raise InputError(f"{text:.300}: the {kind} cannot be reached: {error_text(error)}") from None
        exists = False
    if exists:
        return Path(text)
    if URL.match(text):
        raise InputError(f"{text:.300}: URLs are not read; download the {kind} and give the path of the file")
    raise InputError(f"there is no {kind} {text}; check the path")


def error_text(error: Exception) -> str:
    """An error in words, without the path that the system's errors repeat."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise an InputError for an image of more than `max_pixels`."""
    if width * height > max_pixels:
        raise InputError(
            f"{name}: too large, {width} x {height} pixels; the limit max_pixels is {max_pixels}: give a smaller one"
        )


def _from_pillow(image: Image.Image, max_pixels: int) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"the image given has {image.width} x {image.height} pixels; give one that has some")
    check_size(*image.size, "the image given", max_pixels)
    try:
        image.load()  # it may still be in a file, and that damaged or closed
        return _rgb(image)
    except Exception as error:  # decoders raise errors of many kinds
        raise InputError(f"the image given cannot be read: {error_text(error)}") from error


def _decoded(source: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with _without_warnings():
            opened = Image.open(source, formats=_readable())  # reads the header only
    except UnidentifiedImageError:
        raise InputError(f"{name}: {_unknown(source)}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too large ({error})") from None
    except Exception as error:  # decoders raise errors of many kinds
        raise InputError(f"{name}: the image cannot be read: {error_text(error)}") from error
    with opened as image:
        check_size(*image.size, name, max_pixels)
        try:
            with _without_warnings():
                image.getexif()  # kept by the image; only reading it warns
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return _rgb(image)
        except Exception as error:
            raise InputError(f"{name}: the image cannot be read: {error_text(error)}") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore warnings: of damage that an error tells of or that does no harm, and of sizes, whose limit is ours."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _readable() -> list[str]:
    """The names of `FORMATS` that the installed Pillow reads."""
    if not Image.OPEN.keys() >= FORMATS.keys():
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _unknown(source: Path | io.BytesIO) -> str:
    """Why a file is not read, by the first 16 bytes of it."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(16)
    else:
        start = source.getvalue()[:16]
    Image.init()
    name = next((name for name, (_, accepts) in Image.OPEN.items() if accepts and _tries(accepts, start)), None)
    if name in FORMATS:
        return "the image cannot be read: it is damaged"
    known = ", ".join(_readable())
    if name is None:
        return f"not an image in a format that is read: {known}"
    return f"the format is {name}, which is not read; convert it to one of {known}"


def _tries(accepts: Callable[[bytes], bool | str], start: bytes) -> bool:
    """Whether a plugin of Pillow takes a file for its own."""
    try:
        return bool(accepts(start))
    except (SyntaxError, IndexError, TypeError, struct.error):  # those that Pillow expects of it
        return False


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
