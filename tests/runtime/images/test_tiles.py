"""Images as tiles; what they become is compared with transformers in `test_processors.py`."""

from __future__ import annotations

import numpy as np
from onnx_vlm.graphs.manifest import Crop, Grid, PixelScaling, Resize
from onnx_vlm.runtime.images.tiles import grid_of, tiles
from PIL import Image

RECIPE = Resize(14, 28, PixelScaling("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def test_tiles_are_scaled_and_normalised():
    image = Image.new("RGB", (100, 7), (0, 255, 51))
    made = tiles(image, RECIPE)
    assert made.shape == (1, 3, 14, 28)
    assert made.dtype == np.float32
    assert np.allclose(made[0, :, 5, 5], [-1, 1, -0.6])


def test_the_middle_is_that_of_the_whole_image_resized():
    values = np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8)
    for resample in ("bicubic", "nearest"):
        pixels = PixelScaling(resample, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        wide, tall = Image.fromarray(values), Image.fromarray(values.swapaxes(0, 1).copy())
        middle = tiles(wide, Resize(40, 64, pixels))[..., 6:34, 16:47]
        assert np.array_equal(tiles(wide, Crop(40, 28, 31, pixels)), middle)
        middle = tiles(tall, Resize(64, 40, pixels))[..., 12:52, :]
        assert np.array_equal(tiles(tall, Crop(40, 40, 40, pixels)), middle)


def test_a_grid_has_its_tiles_row_by_row_and_the_whole_image_last():
    """Of an image with four colours, each tile shows one, and the last tile all of them."""
    colours = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [250, 250, 10]]], np.uint8)
    image = Image.fromarray(colours.repeat(30, 0).repeat(30, 1))
    recipe = Grid(14, 28, PixelScaling("lanczos", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    made = tiles(image, recipe)
    assert grid_of(*image.size, recipe) == (2, 2)
    assert made.shape == (5, 3, 14, 14)
    assert np.abs(made[:4, :, 7, 7] - colours.reshape(4, 3)).max() <= 2
    assert np.abs(made[4][:, 3::8, 3::8].transpose(1, 2, 0) - colours).max() <= 2


def test_an_image_that_one_tile_holds_is_that_tile_alone():
    recipe = Grid(28, 28, PixelScaling("lanczos", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert grid_of(90, 30, recipe) == (0, 0)
    assert tiles(Image.new("RGB", (90, 30), (9, 8, 7)), recipe).shape == (1, 3, 28, 28)
