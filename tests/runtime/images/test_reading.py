"""Images from whatever a user has: what is read, and how it is said what is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.images.reading import read
from PIL import Image
from PIL.PngImagePlugin import PngImageFile


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))


def test_every_way_to_give_an_image_gives_the_same(image: Image.Image, tmp_path: Path):
    path = tmp_path / "image.png"
    image.save(path)
    for form in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        assert (np.asarray(read(form)) == np.asarray(image)).all()


def test_files_are_turned_upright(image: Image.Image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert read(file.getvalue()).size == (30, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0)).convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    assert np.asarray(read(image)).tolist() == np.full((4, 4, 3), 255).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str):
    assert read(Image.new(mode, (3, 2))).mode == "RGB"


def test_unreadable_images_are_refused_by_name(tmp_path: Path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for path, said in (
        (tmp_path / "none.png", "no image"),
        (tmp_path, "no file"),
        (tmp_path / "text.png", "not an image in a format that is read: PNG, JPEG"),
        (tmp_path / "cut.png", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), b"", b"x", 5, None],
)
def test_other_values_are_refused(value: object):
    with pytest.raises(InputError):
        read(value)


def test_images_that_are_too_large_are_refused(image: Image.Image):
    file = io.BytesIO()
    image.save(file, "PNG")
    size = f"{image.width} x {image.height}"
    for given in (file.getvalue(), image, np.asarray(image)):
        with pytest.raises(InputError, match=f"too large, {size} pixels; the limit max_pixels is 1000"):
            read(given, max_pixels=1000)
        read(given, max_pixels=image.width * image.height)


@pytest.mark.parametrize("side", [10_000, 17_500])
def test_a_decompression_bomb_is_refused_unread(side: int, monkeypatch: pytest.MonkeyPatch):
    """Some kilobytes that hold 100 million pixels, and 306 million, which are too many for Pillow."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("the file is decoded"))
    with pytest.raises(InputError, match="too large"):
        read(file.getvalue())
