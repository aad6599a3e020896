"""Damaged images of every format that is read."""

from __future__ import annotations

import io
import random
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx_vlm.runtime.images.reading import FORMATS, read
from PIL import Image

from .campaign import Files, Target
from .mutations import damage

MAX_PIXELS = 1 << 20
#: Ways to write each format: the mode of the image, and options of Pillow.
WAYS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "PNG": [("RGB", {}), ("RGBA", {}), ("P", {"transparency": 3}), ("L", {}), ("1", {}), ("I;16", {}), ("LA", {})],
    "JPEG": [("RGB", {}), ("RGB", {"progressive": True, "exif": True}), ("CMYK", {}), ("L", {"optimize": True})],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True}), ("RGB", {"exif": True})],
    "GIF": [("P", {}), ("P", {"transparency": 3}), ("P", {"save_all": True}), ("L", {"interlace": 0})],
    "TIFF": [
        *(("RGB", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        *(("1", {"compression": name}) for name in ("group3", "group4")),
        *((mode, {}) for mode in ("CMYK", "RGBA", "P", "F", "I;16", "LAB", "YCbCr")),
        ("RGB", {"save_all": True}),
    ],
    "BMP": [("RGB", {}), ("P", {}), ("L", {}), ("1", {}), ("RGBA", {})],
    "AVIF": [("RGB", {}), ("RGBA", {}), ("RGB", {"exif": True})],
    "PPM": [("RGB", {}), ("L", {}), ("1", {}), ("I;16", {})],
}
TEXT = b"P3 # numbers as text\n3 2\n255\n255 0 0  0 255 0  0 0 255\n255 255 0  255 255 255  0 0 0\n"


@lru_cache
def originals() -> dict[str, list[bytes]]:
    """A small image in each way that each format can be written."""
    written = {name: [_written(name, mode, options) for mode, options in WAYS[name]] for name in FORMATS}
    written["PPM"].append(TEXT)
    return written


def _written(name: str, mode: str, options: dict[str, Any]) -> bytes:
    rows, columns = np.mgrid[:18, :23]
    levels = np.stack([rows * 14, columns * 11, (rows * columns) % 256], -1).astype(np.uint8)
    image = Image.fromarray(levels).convert("L" if mode == "I;16" else mode) if mode != "LAB" else _lab(levels)
    image = image.convert("I;16") if mode == "I;16" else image
    if options.get("exif"):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        options = options | {"exif": exif}
    if options.get("save_all"):
        options = options | {"append_images": [image.rotate(90 * turns) for turns in (1, 2)]}
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def _lab(levels: np.ndarray) -> Image.Image:
    return Image.frombytes("LAB", levels.shape[1::-1], levels.tobytes())


def make(rng: random.Random) -> Files:
    name = rng.choice(sorted(originals()))
    data = damage(rng, rng.choice(originals()[name]))
    return {"image": _summed(data) if name == "PNG" and rng.random() < 0.7 else data}


def _summed(data: bytes) -> bytes:
    """A PNG file with the checksums that its chunks should have, so that their contents are looked at."""
    parts, start = [data[:8]], 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        parts += [data[start:end], zlib.crc32(data[start + 4 : end]).to_bytes(4, "big")]
        start = end + 4
    return b"".join(parts)


@lru_cache
def _expected() -> set[bytes]:
    return {read(data).tobytes() for ways in originals().values() for data in ways}


def run(files: Files, folder: Path) -> str:
    """Any image is an answer: damaged bytes may be other pixels."""
    image = read(files["image"], MAX_PIXELS)
    assert image.mode == "RGB", image.mode
    assert 0 < image.width * image.height <= MAX_PIXELS, image.size
    pixels = image.tobytes()
    assert len(pixels) == 3 * image.width * image.height
    return "same" if pixels in _expected() else "other pixels"


TARGET = Target("images", make, run, share=2, memory=256 << 20)
