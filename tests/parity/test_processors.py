"""Processors with published settings: images and videos as transformers prepares them, to the last grey level."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PHOTOGRAPHS, write_film
from onnx_vlm.graphs import CheckpointError
from onnx_vlm.graphs.manifest import Grid, Resize, Video
from onnx_vlm.runtime.images import video
from onnx_vlm.runtime.images.reading import read
from onnx_vlm.runtime.images.tiles import canvas, grid_of, scaled
from onnx_vlm.runtime.images.tiles import tiles as tiles_of_image
from PIL import Image, ImageOps
from published_processors import (
    KOSMOS2,
    PERCEPTION_LM,
    SETTINGS,
    SMOLVLM,
    TILE_TOKENS,
    Processor,
    assert_same_pixels,
    noise,
)
from transformers.image_utils import load_image
from transformers.models.idefics3.image_processing_idefics3 import get_resize_output_image_size
from transformers.video_utils import load_video


@pytest.fixture
def published(tmp_path: Path) -> Callable[[str], Processor]:
    """The processor with the published settings of a name; one a test."""
    return lambda name: Processor(name, tmp_path)


SIZES = [
    (1, 1),
    (1, 50),
    (50, 1),
    (2, 3),
    (37, 53),
    (223, 225),
    (224, 224),
    (448, 447),
    (640, 480),
    (481, 1283),
    (4000, 80),
    (80, 4000),
    (4000, 3000),
    (1000, 3000),
]
MODES = ["1", "L", "LA", "P", "P, transparent", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_pictures_of_every_size_and_mode(published: Callable[[str], Processor], name: str):
    one = published(name)
    recipe, processor = one.behaviour.image, one.source.image_processor
    pictures = [noise(*size) for size in SIZES] + [noise(61, 47, mode) for mode in MODES]
    given = [(picture, picture) for picture in pictures]
    given += [(path, ImageOps.exif_transpose(Image.open(path))) for path in PHOTOGRAPHS]
    for ours, theirs in given:
        pixels = np.asarray(processor(theirs, return_tensors="np")["pixel_values"][0])
        assert_same_pixels(tiles_of_image(read(ours), recipe), pixels.reshape(-1, *pixels.shape[-3:]), recipe)


def test_files_are_turned_upright_as_transformers_loads_them(published: Callable[[str], Processor], tmp_path: Path):
    one = published(KOSMOS2)
    processor, recipe = one.source.image_processor, one.behaviour.image
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        noise(31, 57).save(path, exif=exif)
        theirs = processor(load_image(str(path)), return_tensors="np")["pixel_values"]
        assert_same_pixels(tiles_of_image(read(path), recipe), theirs, recipe)


@pytest.mark.needs("images", "expected")
def test_published_pixels(published: Callable[[str], Processor], assets: Path):
    values = json.loads((assets / "expected" / "summary.json").read_text())["kosmos2"]
    tiles = tiles_of_image(read(assets / "images" / "two_dogs.resaved.jpg"), published(KOSMOS2).behaviour.image)
    assert np.allclose(tiles[0, :3, :3, :3], values["EXPECTED_PIXEL_VALUES_1"], atol=1e-6)
    assert np.allclose(tiles[0, :3, -3:, -3:], values["EXPECTED_PIXEL_VALUES_2"], atol=1e-6)


def test_canvases_of_up_to_36_tiles(published: Callable[[str], Processor]):
    """Random sizes of all shapes, exact canvases and their neighbours, which are where ties fall."""
    processor = published(PERCEPTION_LM).source.image_processor
    draw = random.Random(0)
    sizes = [(draw.randint(1, 60), draw.randint(1, 60)) for _ in range(100)]
    sizes += [(int(10 ** draw.uniform(0, 3.6)), int(10 ** draw.uniform(0, 3.6))) for _ in range(100)]
    edges = [
        (columns * 10 + a, rows * 10 + b)
        for columns in range(1, 7)
        for rows in range(1, 7)
        for a in (-1, 0, 1)
        for b in (0, 1)
    ]
    for most in range(1, 37):
        processor.max_num_tiles = most
        supported = processor._find_supported_aspect_ratios()
        processor._find_supported_aspect_ratios = lambda supported=supported: supported  # it is slow
        found = set()
        for width, height in [*sizes, *edges, *((c * 10, r * 10) for pairs in supported.values() for c, r in pairs)]:
            theirs = processor._fit_image_to_canvas(width, height, 10)
            theirs = theirs or processor._find_closest_aspect_ratio(width, height, 10)
            assert canvas(width, height, 10, most) == theirs, (width, height, most)
            found.add(theirs)
        assert max(columns * rows for columns, rows in found) == most
        del processor._find_supported_aspect_ratios


def test_sides_of_grids(published: Callable[[str], Processor], monkeypatch: pytest.MonkeyPatch):
    """Images of all shapes and many sizes, with tiles and longest edges that divide each other and that do not."""
    processor, pixels = published(SMOLVLM).source.image_processor, published(SMOLVLM).behaviour.image.pixels
    monkeypatch.setattr(processor, "resize", lambda image, size, resample: (size.width, size.height))
    draw = random.Random(0)
    sizes = [(draw.randint(1, 60), draw.randint(1, 60)) for _ in range(1000)]
    sizes += [(int(10 ** draw.uniform(0, 4)), int(10 ** draw.uniform(0, 4))) for _ in range(3000)]
    for width, height in sizes:
        for size, longest in ((512, 2048), (364, 1456), (384, 1920), (28, 57), (14, 101), (512, 512), (50, 20)):
            image = torch.empty(3, height, width, device="meta")
            rescaled = get_resize_output_image_size(image, longest)
            assert scaled(width, height, longest) == rescaled[::-1], (width, height, longest)
            image = torch.empty(3, *rescaled, device="meta")
            sides = processor.resize_for_vision_encoder(image, size)
            expected = (0, 0) if sides == (size, size) else (sides[0] // size, sides[1] // size)
            assert grid_of(width, height, Grid(size, longest, pixels)) == expected, (width, height, size, longest)


def test_images_that_are_not_split(published: Callable[[str], Processor]):
    one = published(SMOLVLM)
    one.edit(lambda settings: settings["image_processor"].update(do_image_splitting=False))
    recipe, processor = one.behaviour.image, one.source.image_processor
    assert isinstance(recipe, Resize)
    for size in SIZES:
        theirs = np.asarray(processor(noise(*size), return_tensors="np")["pixel_values"][0])
        assert_same_pixels(tiles_of_image(noise(*size), recipe), theirs, recipe)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"size": {"height": 512, "width": 512}}, "a longest_edge"),
        ({"size": {"longest_edge": 5000}}, "longest_edge is 5000; give 4096 at most"),
        ({"max_image_size": {"longest_edge": 0}}, "longest_edge is 0"),
        ({"do_image_splitting": 1}, "do_image_splitting is 1"),
        ({"do_resize": False}, "do_resize is False"),
    ],
)
def test_settings_of_grids_that_are_refused(published: Callable[[str], Processor], changed: dict, problem: str):
    one = published(SMOLVLM)
    one.edit(lambda settings: settings["image_processor"].update(changed))
    with pytest.raises(CheckpointError, match=problem):
        _ = one.behaviour


def test_published_numbers_of_tiles(published: Callable[[str], Processor]):
    one = published(PERCEPTION_LM)
    one.edit(lambda settings: settings["image_processor"].update(max_num_tiles=4))
    assert len(tiles_of_image(noise(450, 500), one.behaviour.image)) * TILE_TOKENS[PERCEPTION_LM] == 1280
    one.edit(lambda settings: settings["image_processor"].update(vision_input_type="vanilla"))
    assert isinstance(one.behaviour.image, Resize)
    theirs = one.source.image_processor(noise(450, 500), return_tensors="np")["pixel_values"][0]
    assert_same_pixels(tiles_of_image(noise(450, 500), one.behaviour.image), theirs, one.behaviour.image)


def video_tiles(given: video.VideoInput, recipe: Video) -> np.ndarray:
    return video.tiles(video.frames(given, recipe), recipe)


def test_videos_as_files_arrays_and_folders(published: Callable[[str], Processor], tmp_path: Path):
    one = published(PERCEPTION_LM)
    processor, recipe = one.source.video_processor, one.behaviour.video
    assert recipe.frames == 32
    recipe = Video(7, recipe.tile)
    path = write_film(tmp_path / "film.mp4")
    frames, _ = load_video(str(path), num_frames=7, backend="pyav")
    theirs = processor(videos=frames, return_tensors="np")
    ours = video_tiles(path, recipe)
    assert_same_pixels(ours, np.asarray(theirs["pixel_values_videos"][0]), recipe.tile)

    array = np.random.default_rng(0).integers(0, 256, (12, 33, 70, 3), np.uint8)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(array):
        Image.fromarray(frame).save(folder / f"frame{index}.png")  # frame10 comes after frame9
    (folder / "notes.txt").write_text("no picture")
    metadata = {"total_num_frames": 12, "fps": 4}
    theirs = processor(
        videos=array, video_metadata=[metadata], num_frames=7, do_sample_frames=True, return_tensors="np"
    )
    for given in (array, folder, str(folder)):
        assert_same_pixels(video_tiles(given, recipe), np.asarray(theirs["pixel_values_videos"][0]), recipe.tile)
    whole = processor(videos=array[:7], return_tensors="np")["pixel_values_videos"][0]
    assert_same_pixels(video_tiles(array[:7], Video(32, recipe.tile)), np.asarray(whole), recipe.tile)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_older_files_of_settings(published: Callable[[str], Processor], name: str):
    """Before transformers 5 each processor had a file of its own."""
    one = published(name)
    before = one.behaviour
    settings = json.loads((one.folder / "processor_config.json").read_text())
    files = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    for part, file in files.items():
        if part in settings:
            (one.folder / file).write_text(json.dumps(settings.pop(part)))
    (one.folder / "processor_config.json").write_text(json.dumps(settings))
    if (template := one.folder / "chat_template.jinja").exists():
        (one.folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
        template.unlink()
    assert one.behaviour == before


def test_the_square_size_of_older_settings(published: Callable[[str], Processor]):
    one = published(KOSMOS2)
    before = one.behaviour
    one.edit(lambda settings: settings["image_processor"].update(size={"shortest_edge": 224}, use_square_size=True))
    assert one.behaviour == before
    one.edit(lambda settings: settings["image_processor"].pop("use_square_size"))
    with pytest.raises(CheckpointError, match="shortest_edge"):
        _ = one.behaviour
    one.edit(lambda settings: settings["image_processor"].update(size={"height": 300, "width": 224}))
    with pytest.raises(CheckpointError, match="crops 300 x 224 to 224 x 224"):
        _ = one.behaviour
