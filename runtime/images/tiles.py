"""RGB images as the tiles that a vision encoder takes: resized, cut and normalised. NumPy and Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from ...graphs.manifest import Crop, Crops, Grid, ImageRecipe, PixelScaling, Resize, Tiles
from .resize import resize


def tiles(image: Image.Image, recipe: ImageRecipe) -> np.ndarray:
    """The tiles of an RGB image, (tiles, 3, height, width) of float32.

    Raises:
        InputError: if a side is too long to be resized.
    """
    resample = recipe.pixels.resample
    shape = image.height, image.width
    planes = [np.frombuffer(image.tobytes("raw", channel), np.uint8).reshape(shape) for channel in "RGB"]
    if isinstance(recipe, Tiles):
        columns, rows = canvas(*image.size, recipe.size, recipe.max_tiles)
        whole = resize(planes, rows * recipe.size, columns * recipe.size, resample)
        thumbnail = resize(planes, recipe.size, recipe.size, resample)
        return normalise(np.concatenate([thumbnail[None], cut(whole, recipe.size)]), recipe.pixels)
    if isinstance(recipe, Crop):
        return normalise(_middle(planes, recipe)[None], recipe.pixels)
    if isinstance(recipe, Crops):
        parts = [planes, *([plane[part] for plane in planes] for part in _parts(*image.size, recipe))]
        resized = [resize(part, recipe.height, recipe.width, resample) for part in parts]
        return normalise(np.stack(resized), recipe.pixels)
    if recipe.longest_edge is not None:
        planes = resize(planes, *scaled(*image.size, recipe.longest_edge)[::-1], resample)
    if isinstance(recipe, Resize):
        return normalise(resize(planes, recipe.height, recipe.width, resample)[None], recipe.pixels)
    columns, rows = grid_of(*image.size, recipe)
    whole = resize(planes, max(rows, 1) * recipe.size, max(columns, 1) * recipe.size, resample)
    parts = cut(whole, recipe.size)
    if rows:
        parts = np.concatenate([parts, resize(whole, recipe.size, recipe.size, resample)[None]])
    return normalise(parts, recipe.pixels)


def cut(planes: np.ndarray, size: int) -> np.ndarray:
    """An image (3, height, width) of whole tiles as these, (tiles, 3, size, size), row by row."""
    _, height, width = planes.shape
    squares = planes.reshape(3, height // size, size, width // size, size)
    return squares.transpose(1, 3, 0, 2, 4).reshape(-1, 3, size, size)


def scaled(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height of an image whose longer side becomes `longest`.

    The shorter side is rounded down, then up to an even number, with the arithmetic of the image processor in
    transformers: of a square, too, it is the height.
    """
    ratio = width / height
    if width >= height:
        shorter = int(longest / ratio)
        return longest, max(shorter + shorter % 2, 1)
    shorter = int(longest * ratio)
    return max(shorter + shorter % 2, 1), longest


def grid_of(width: int, height: int, recipe: ImageRecipe) -> tuple[int, int]:
    """Columns and rows of the tiles that an image of `width` x `height` pixels is cut into; 0 and 0 if it is not.

    The arithmetic is that of the image processor in transformers, so that the same side is rounded in the same way.
    """
    if not isinstance(recipe, Grid):
        return 0, 0
    width, height = scaled(width, height, recipe.longest_edge)
    size, ratio = recipe.size, width / height
    if width >= height:
        columns = math.ceil(width / size)
        rows = math.ceil(int(columns * size / ratio) / size)
    else:
        rows = math.ceil(height / size)
        columns = math.ceil(int(rows * size * ratio) / size)
    return (columns, rows) if columns > 1 or rows > 1 else (0, 0)


def _middle(planes: Sequence[np.ndarray], recipe: Crop) -> np.ndarray:
    """The middle of an image whose shorter side is resized to `shortest_edge`, (3, height, width) of uint8."""
    shorter = min(planes[0].shape)
    # This order of the operations rounds as the image processor in transformers does.
    height, width = (int(recipe.shortest_edge * side / shorter) for side in planes[0].shape)
    top, left = (height - recipe.height) // 2, (width - recipe.width) // 2
    part = slice(top, top + recipe.height), slice(left, left + recipe.width)
    return resize(planes, height, width, recipe.pixels.resample, part)


def _parts(width: int, height: int, recipe: Crops) -> list[tuple[slice, slice]]:
    """Rows and columns of the parts that an image is cut into, none if it is not.

    The arithmetic is that of the image processor in transformers.
    """
    longer, shorter = max(width, height), min(width, height)
    if longer / shorter < recipe.ratio:
        return []
    count = min(recipe.most, max(2, min(longer // recipe.smallest, math.floor(longer / shorter + 0.5))))
    length = math.ceil(longer / count)
    if min(length, shorter) < recipe.smallest:
        return []
    cuts = [slice(start, start + length) for start in range(0, longer, length)]
    return [(slice(None), cut) if width >= height else (cut, slice(None)) for cut in cuts]


def normalise(levels: np.ndarray, pixels: PixelScaling) -> np.ndarray:
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
    """Columns and rows of every canvas, by their ratio. The order decides between equals: most tiles first, then
    fewest columns."""
    by_ratio: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_tiles, 0, -1):
        for columns in (divisor for divisor in range(1, count + 1) if count % divisor == 0):
            by_ratio.setdefault(columns / (count // columns), []).append((columns, count // columns))
    return by_ratio


def canvas(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of the canvas for an image of `width` x `height` pixels in tiles of `size`.

    If the image fits into a canvas unscaled, choose the canvas in which its shorter edge becomes longest; of equals the
    last. If it fits into none, choose the closest ratio that is no wider than a wide image and wider than a tall one,
    with the most tiles. Arithmetic and order are those of the image processor in transformers, so ties fall as there.
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
