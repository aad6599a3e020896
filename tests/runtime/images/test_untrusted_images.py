"""Files that are damaged, of other formats, or out of reach are InputErrors, whatever Pillow or the system says."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.images.reading import FORMATS, read
from PIL import Image, ImageFile

LEFT_OUT = ["EPS", "PCX", "SGI", "ICO", "JPEG2000", "DDS", "MSP", "ICNS"]


def encoded(format: str) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    file = io.BytesIO()
    (image.convert("1") if format == "MSP" else image).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "readable"),
    [("JPEG", True), ("TIFF", False)],
    ids=["an EXIF block that breaks off", "a TIFF that ends in its tags"],
)
def test_damage_is_no_warning(format: str, readable: bool):
    image, file, exif = Image.new("RGB", (16, 12), "red"), io.BytesIO(), Image.Exif()
    exif[0x010E] = "a description"
    image.save(file, format, **({"exif": exif} if readable else {}))
    data = file.getvalue()
    if readable:
        data = data.replace(b"Exif\0\0MM\0*\0\0\0\x08\0\x01", b"Exif\0\0MM\0*\0\0\0\x08\0\x7f")
    else:
        data = data[:100]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with contextlib.nullcontext() if readable else pytest.raises(InputError):
            read(data)
    assert not shown


@pytest.mark.parametrize("format", FORMATS)
def test_formats_that_are_read(format: str, tmp_path: Path):
    path = tmp_path / f"image{FORMATS[format][0]}"
    path.write_bytes(encoded(format))
    for form in (path, path.read_bytes()):
        assert read(form).size == (24, 16)
    path.rename(tmp_path / "image.xyz")
    assert read(tmp_path / "image.xyz").size == (24, 16), "the name does not matter"


@pytest.mark.parametrize("format", LEFT_OUT)
def test_a_format_that_is_not_read_is_named_and_its_code_not_run(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(format))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program is started"))
    for form in (path, path.read_bytes()):
        with pytest.raises(InputError, match=rf"the format is {format}, which is not read; .* PNG, JPEG, WEBP"):
            read(form)
    monkeypatch.setitem(Image.OPEN, format, (lambda *_: pytest.fail("its decoder runs"), Image.OPEN[format][1]))
    with pytest.raises(InputError):
        read(path)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_images_or_errors_that_say_so(format: str):
    data, draw = encoded(format), random.Random(0)
    refused = []
    for _ in range(150):
        mutated = bytearray(data[: draw.randint(1, len(data))] if draw.random() < 0.3 else data)
        for _ in range(draw.randint(1, 8)):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        try:
            assert read(bytes(mutated), max_pixels=100_000).mode == "RGB"
        except InputError as error:
            refused.append(str(error))
    assert refused
    assert all(" bytes given: " in message for message in refused)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, ZeroDivisionError, MemoryError, EOFError])
@pytest.mark.parametrize("stage", ["open", "load"])
def test_whatever_a_decoder_raises_is_an_input_error(stage: str, kind: type, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise kind

    data = encoded("BMP")
    if stage == "load":
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    else:
        monkeypatch.setitem(Image.OPEN, "BMP", (fail, Image.OPEN["BMP"][1]))
    with pytest.raises(InputError, match=f"the image cannot be read: {kind.__name__}"):
        read(data)


def lazy() -> Image.Image:
    return Image.open(io.BytesIO(encoded("PNG")[:200]))


def closed() -> Image.Image:
    image = Image.new("RGB", (3, 3))
    image.close()
    return image


def without_file() -> Image.Image:
    image = Image.open(io.BytesIO(encoded("BMP")))
    image.fp.close()
    return image


@pytest.mark.parametrize(
    "make", [lazy, closed, without_file, lambda: Image.new("RGB", (0, 5)), lambda: Image.new("La", (3, 3))]
)
def test_pillow_images_that_cannot_be_read(make):
    with pytest.raises(InputError, match="the image given"):
        read(make())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "the path of the image is empty"),
        ("a" * 300, "File name too long"),
        ("http://host/image.png", "URLs are not read; download the image"),
        (Path("https://host/image.png"), "URLs are not read"),
        ("data:image/png;base64," + "A" * 5000, "URLs are not read"),
        ("image\0.png", "image"),
    ],
)
def test_paths_that_lead_nowhere(path: str | Path, said: str):
    with pytest.raises(InputError, match=said) as caught:
        read(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("call", ["pathlib.Path.exists", "builtins.open"])
def test_what_may_not_be_read(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As for a user without permission; root has every one."""
    path = tmp_path / "image.png"
    path.write_bytes(encoded("PNG"))

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(call, fail)
    with pytest.raises(InputError, match=r"image\.png: .* cannot be (reached|read): Permission denied"):
        read(path)
