"""Reading pictures and turning them into tiles."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.graphs.manifest import Pixels, Resize
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.images.reading import read, tiles
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

RECIPE = Resize("resize", 14, 28, Pixels("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))


def test_every_way_to_give_a_picture_gives_the_same(picture: Image.Image, tmp_path: Path):
    picture.save(tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    given = [tmp_path / "picture.png", str(tmp_path / "picture.png"), data, picture, np.asarray(picture)]
    assert all((np.asarray(read(image)) == np.asarray(picture)).all() for image in given)


def test_files_are_turned_upright(picture: Image.Image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    assert read(file.getvalue()).size == (30, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str):
    picture = Image.new("RGBA", (4, 4), (200, 0, 0, 0)).convert(mode)
    if mode == "P":
        picture.info["transparency"] = picture.getpixel((0, 0))
    assert np.asarray(read(picture)).tolist() == np.full((4, 4, 3), 255).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str):
    assert read(Image.new(mode, (3, 2))).mode == "RGB"


def test_tiles_are_scaled_and_normalised():
    picture = Image.new("RGB", (100, 7), (0, 255, 51))
    made = tiles(picture, RECIPE)
    assert made.shape == (1, 3, 14, 28)
    assert made.dtype == np.float32
    assert np.allclose(made[0, :, 5, 5], [-1, 1, -0.6])


def test_unreadable_pictures_are_refused_by_name(tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for path, said in (
        (tmp_path / "none.png", "no picture"),
        (tmp_path, "no file"),
        (tmp_path / "text.png", "not a picture"),
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


def test_pictures_that_are_too_large_are_refused(picture: Image.Image):
    file = io.BytesIO()
    picture.save(file, "PNG")
    size = f"{picture.width} x {picture.height}"
    for given in (file.getvalue(), picture, np.asarray(picture)):
        with pytest.raises(InputError, match=f"too large, {size} pixels; the limit max_pixels is 1000"):
            read(given, max_pixels=1000)
        read(given, max_pixels=picture.width * picture.height)


@pytest.mark.parametrize("side", [10_000, 17_500])
def test_a_decompression_bomb_is_refused_unread(side: int, monkeypatch: pytest.MonkeyPatch):
    """Some kilobytes that hold 100 million pixels, and 306 million, which are too many for Pillow."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("the file is decoded"))
    with pytest.raises(InputError, match="too large"):
        read(file.getvalue())
