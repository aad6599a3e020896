"""Recipes for images and videos, a part of `recipes`: each says what tiles an image becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class PixelScaling:
    """How an image is resized, and how its levels (0 to 255) are scaled: (level * rescale_factor - mean) / std.

    `mean` and `std` have a number for each of red, green and blue.
    """

    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Resize:
    """An image becomes one tile: RGB, resized to `height` x `width` pixels, whatever its aspect ratio.

    Where `longest_edge` is not null, the image is resized before so that its longer side has that many pixels and its
    sides keep their ratio.
    """

    kind: Literal["resize"] = field(default="resize", init=False)
    height: int
    width: int
    pixels: PixelScaling
    longest_edge: int | None = None

    @property
    def most_tiles(self) -> int:
        """The most tiles of an image."""
        return 1


@dataclass(frozen=True)
class Crop:
    """An image becomes one tile: resized so that its shorter side has `shortest_edge` pixels, then the middle of it.

    The sides keep their ratio. `height` x `width` pixels are kept, as many on each side of the middle; where their
    number is odd, the right and the lower side have one less. The rest of the image is not seen.
    """

    kind: Literal["crop"] = field(default="crop", init=False)
    shortest_edge: int
    height: int
    width: int
    pixels: PixelScaling

    @property
    def most_tiles(self) -> int:
        """The most tiles of an image."""
        return 1


@dataclass(frozen=True)
class Crops:
    """An image becomes one tile, as by `Resize`; a long one is also cut into parts, each of which becomes a tile.

    An image is cut across if its longer side is `ratio` times its shorter or more. The number of parts is the ratio of
    the sides, rounded, or how often `smallest` pixels fit into the longer side if that is less; at least 2 and at most
    `most`. The parts are equal but for the last, which may be shorter. An image is not cut if a side of a part would
    have less than `smallest` pixels.
    """

    kind: Literal["crops"] = field(default="crops", init=False)
    height: int
    width: int
    pixels: PixelScaling
    smallest: int
    most: int
    ratio: float

    @property
    def most_tiles(self) -> int:
        """The most tiles of an image, with the whole image."""
        return 1 + self.most


@dataclass(frozen=True)
class Tiles:
    """An image becomes a thumbnail of one tile, then the tiles of a canvas that suits its aspect ratio, row by row.

    A tile has `size` x `size` pixels; a canvas has at most `max_tiles` tiles.
    """

    kind: Literal["tiles"] = field(default="tiles", init=False)
    size: int
    max_tiles: int
    pixels: PixelScaling

    @property
    def most_tiles(self) -> int:
        """The most tiles of an image, with the thumbnail."""
        return 1 + self.max_tiles


@dataclass(frozen=True)
class Grid:
    """An image is resized so that its longer side has `longest_edge` pixels, then cut into tiles of `size` x `size`.

    The cut is made after a second resize, of each side to the next multiple of `size`. The tiles stand row by row, and
    the whole image, resized to one tile, is the last. An image that one tile holds becomes that tile alone.
    """

    kind: Literal["grid"] = field(default="grid", init=False)
    size: int
    longest_edge: int
    pixels: PixelScaling

    @property
    def most_tiles(self) -> int:
        """The most tiles of an image, with the whole image."""
        side = -(-self.longest_edge // self.size)
        return 1 + side * side if side > 1 else 1


ImageRecipe: TypeAlias = "Resize | Crop | Crops | Tiles | Grid"


@dataclass(frozen=True)
class Video:
    """A video is sampled to at most `frames` frames, and each of them becomes one tile.

    Where `rate` is null, frames are taken evenly, and a shorter video is used whole. If not, `rate` frames a second are
    taken, evenly from the first frame to the last. Of a video with more than `frames` * `rate` seconds besides, the
    first and the last `margin` seconds are left out. Where a video is given as frames, these are taken as if `rate`
    were null.
    """

    frames: int
    tile: Resize
    rate: float | None = None
    margin: float = 0.0
