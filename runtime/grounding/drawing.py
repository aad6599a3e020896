"""Boxes, masks and their labels drawn on an image, legible on light and dark ones, large and small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from .types import Box, Mask

#: Dark enough for white letters, a WCAG contrast of 4.5 or more; a white line keeps them apart from dark images.
PALETTE = ("#d6153f", "#0a7d33", "#1f4fd8", "#b35900", "#7a1fa2", "#007a87", "#a3195b", "#4d5d00")
OPACITY = 0.45  #: of a mask's inside

Rectangle: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom, the far edges exclusive
Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"


def draw(image: Image.Image, boxes: Sequence[Box], masks: Sequence[Mask] = ()) -> Image.Image:
    """A copy of the image with masks filled and outlined, and boxes outlined and labelled, a colour for each label.

    Lines and letters are as large as suits the image. Labels stay within it and, where there is room, off each other.

    Args:
        image: the image that the boxes and masks are of.
        boxes: in its pixels.
        masks: those without pixels are left out.
    """
    drawn = image.convert("RGB")
    scale = (image.width * image.height) ** 0.5
    line = max(1, round(scale / 260))
    labels = list(dict.fromkeys(item.label for item in (*boxes, *masks)))
    colours = {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}
    shapes = [_Shape(mask.pixels, colours[mask.label], line) for mask in masks if mask.pixels is not None]
    for layer in ("fill", "halo", "edge"):  # what belongs to one is not hidden by what surrounds another
        for shape in shapes:
            shape.paint(drawn, layer)
    pen = ImageDraw.Draw(drawn)
    smaller = sorted(boxes, key=lambda box: (box.xmin - box.xmax) * (box.ymax - box.ymin))
    for box in smaller:  # outside the box, so that what it holds stays visible
        pen.rectangle(_around(box, 3 * line, image.size), outline="white", width=3 * line)
    for box in smaller:
        pen.rectangle(_around(box, 2 * line, image.size), outline=colours[box.label], width=line)
    font = ImageFont.load_default(size=max(11, scale / 30))
    taken: list[Rectangle] = []
    for box in boxes:
        if text := _fitting(" ".join(box.label.split()), font, image.width - 6 * line):
            taken.append(_tag(pen, box, text, colours[box.label], font, line, image.size, taken))
    return drawn


class _Shape:
    """A mask's layers: its inside tinted, an edge within it, and a white line around it.

    Args:
        pixels: (height, width) of bool.
    """

    def __init__(self, pixels: np.ndarray, colour: str, line: int) -> None:
        whole = Image.fromarray(pixels).convert("L")
        left, top, right, bottom = whole.getbbox() or (0, 0, 1, 1)
        self._corner = left - line - 1, top - line - 1
        # Cropping beyond the image adds what is outside: there a mask has an edge as well.
        inside = whole.crop((*self._corner, right + line + 1, bottom + line + 1))
        core = around = inside
        for _ in range(line):
            core, around = core.filter(ImageFilter.MinFilter(3)), around.filter(ImageFilter.MaxFilter(3))
        self._layers = {
            "fill": (colour, inside.point(lambda level: round(level * OPACITY))),
            "halo": ("white", ImageChops.subtract(around, inside)),
            "edge": (colour, ImageChops.subtract(inside, core)),
        }

    def paint(self, drawn: Image.Image, layer: str) -> None:
        colour, mask = self._layers[layer]
        drawn.paste(Image.new("RGB", mask.size, colour), self._corner, mask)


def _around(box: Box, margin: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The pixels `margin` outside a box, within an image of that size."""
    left, top = max(0, box.xmin - margin), max(0, box.ymin - margin)
    return left, top, max(left, min(size[0], box.xmax + margin) - 1), max(top, min(size[1], box.ymax + margin) - 1)


def _fitting(text: str, font: Font, width: int) -> str:
    """A text, its end cut where it is wider than `width`; empty if not even a letter fits."""
    if font.getlength(text) <= width:
        return text
    candidates = (f"{text[:end].rstrip()}…" for end in range(len(text) - 1, 0, -1))
    return next((shortened for shortened in candidates if font.getlength(shortened) <= width), "")


def _tag(
    pen: ImageDraw.ImageDraw,
    box: Box,
    text: str,
    colour: str,
    font: Font,
    line: int,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Write a label at a box, where it covers least of the labels in `taken`; the pixels that it takes."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    _, ascent, _, descent = pen.textbbox((0, 0), "Ag", font=font)  # labels beside each other are equally high
    top, bottom = min(top, ascent), max(bottom, descent)
    width, height = round(right - left) + 6 * line, round(bottom - top) + 4 * line
    spots = dict.fromkeys(_spots(box, width, height, line, size))

    def covered(spot: tuple[int, int]) -> int:
        """Pixels of other labels that a label there covers."""
        rectangle = (*spot, spot[0] + width, spot[1] + height)
        return sum(_shared(rectangle, label) for label in taken)

    x, y = min(spots, key=covered)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour, outline="white", width=line)
    pen.text((x + 3 * line - left, y + 2 * line - top), text, fill="white", font=font)
    return x, y, x + width, y + height


def _spots(box: Box, width: int, height: int, line: int, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Places for the upper left corner of a label, the best first, all of them within the image if there is room.

    Above the box, below it, within its corners, then ever further from its upper edge.
    """
    lefts = box.xmin - 3 * line, box.xmax + 3 * line - width
    above, below = box.ymin - 3 * line - height, box.ymax + 3 * line
    rows = [above, below, box.ymin + line, box.ymax - line - height]
    spots = [(x, y) for y in rows if 0 <= y <= size[1] - height for x in lefts]
    further = (above + sign * step * (height + line) for step in range(size[1] // height + 1) for sign in (-1, 1))
    for x, y in [*spots, *((lefts[0], y) for y in further)]:
        yield round(min(max(0, x), max(0, size[0] - width))), round(min(max(0, y), max(0, size[1] - height)))


def _shared(first: Rectangle, second: Rectangle) -> int:
    """Pixels that two rectangles share."""
    across, down = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    return max(0, across) * max(0, down)
