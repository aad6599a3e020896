"""Boxes in answers: read from location tokens, drawn on pictures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..graphs.manifest import LocationTokens

PALETTE = ("#e6194b", "#0a7d33", "#1f4fd8", "#b35900", "#7a1fa2", "#007a87", "#a3195b", "#4d5d00")


@dataclass(frozen=True)
class Box:
    """A labelled box in pixels of the given picture; the far edges are exclusive."""

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Mask:
    """The shape of what is in a box.

    Attributes:
        label: as that of the box.
        box: where it is.
        codes: those that the answer writes for the shape.
        pixels: (height, width) of bool, the whole picture; None where the bundle has no decoder of masks.
    """

    label: str
    box: Box
    codes: tuple[int, ...]
    pixels: np.ndarray | None = field(default=None, compare=False)


def boxes(text: str, format: LocationTokens, width: int, height: int) -> list[Box]:
    """The boxes of an answer about a picture of `width` x `height` pixels; runs of other than four tokens are none.

    A label reaches to the separator, the next location token or the end; codes in front of it are no part of it.
    """
    return [box for box, _ in _coded(text, format, width, height)]


def masks(text: str, format: LocationTokens, width: int, height: int) -> list[Mask]:
    """The masks of an answer, without pixels: boxes behind which all codes of a mask stand."""
    coded = _coded(text, format, width, height)
    return [Mask(box.label, box, codes) for box, codes in coded if len(codes) == format.codes]


def _coded(text: str, format: LocationTokens, width: int, height: int) -> Iterator[tuple[Box, tuple[int, ...]]]:
    """Boxes and the codes behind each."""
    token, code = (re.sub(r"\\\{.*\\\}", r"(\d+)", re.escape(form)) for form in (format.token, format.code))
    for match in re.finditer(f"(?:{token})+", text):
        bins = [int(number) for number in re.findall(token, match[0])]
        if len(bins) != len(format.edges):
            continue
        label = re.split(f"{re.escape(format.separator)}|{token}", text[match.end() :], maxsplit=1)[0]
        leading = re.match(rf"(?:\s*{code})*", label)[0]
        codes = tuple(int(number) for number in re.findall(code, leading))
        edges = dict(zip(format.edges, bins))
        x, y = width / format.bins, height / format.bins
        sides = edges["xmin"] * x, edges["ymin"] * y, edges["xmax"] * x, edges["ymax"] * y
        yield Box(re.sub(code, "", label).strip(), *sides), codes


def filled(mask: Mask, shape: np.ndarray, width: int, height: int) -> Mask:
    """A mask with its pixels in a picture of `width` x `height`: its shape (rows, columns), above 0 inside, as large as
    the box.

    The shape is resized bilinearly and then cut at 0, as big_vision's evaluation of segmentation does; the box is that
    of `Box`, rounded to whole pixels.
    """
    pixels, box = np.zeros((height, width), bool), mask.box
    left, top, right, bottom = (round(edge) for edge in (box.xmin, box.ymin, box.xmax, box.ymax))
    if left < right and top < bottom:
        resized = Image.fromarray(shape).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        pixels[top:bottom, left:right] = np.asarray(resized) > 0
    return dataclasses.replace(mask, pixels=pixels)


def run_lengths(pixels: np.ndarray) -> dict[str, list[int]]:
    """A mask (height, width) of bool for JSON, as COCO's uncompressed run lengths: `size` (height, width) and `counts`,
    the lengths of runs down the columns, in turn outside and inside."""
    down = np.concatenate([[False], pixels.ravel(order="F")])
    ends = np.flatnonzero(np.diff(down, append=not down[-1]))
    return {"size": list(pixels.shape), "counts": np.diff(ends, prepend=0).tolist()}


def draw(image: Image.Image, boxes: Sequence[Box], masks: Sequence[Mask] = ()) -> Image.Image:
    """A copy of the picture with each box outlined and labelled, one colour a label, legible on light and dark."""
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    unit = max(1, round(min(image.size) / 130))
    font = ImageFont.load_default(size=max(11, 7 * unit))
    labels = list(dict.fromkeys(box.label for box in boxes))
    for box in boxes:
        colour = PALETTE[labels.index(box.label) % len(PALETTE)]
        # Outside the box, so that what it holds stays visible; a white line keeps the colour apart from the background.
        pen.rectangle(_around(box, 2 * unit, image.size), outline="white", width=unit)
        pen.rectangle(_around(box, unit, image.size), outline=colour, width=unit + 1)
        if box.label:
            _tag(pen, box, colour, font, unit, image.size)
    return drawn


def _around(box: Box, margin: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The pixels `margin` outside a box, within a picture of that size."""
    left, top = max(0, box.xmin - margin), max(0, box.ymin - margin)
    return left, top, max(left, min(size[0], box.xmax + margin) - 1), max(top, min(size[1], box.ymax + margin) - 1)


def _tag(
    pen: ImageDraw.ImageDraw,
    box: Box,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    unit: int,
    size: tuple[int, int],
) -> None:
    """The label above the box's corner, or below it where there is no room."""
    left, top, right, bottom = pen.textbbox((0, 0), box.label, font=font)
    width, height = right - left + 4 * unit, bottom - top + 4 * unit
    x = min(max(0, box.xmin - 2 * unit), max(0, size[0] - width))
    y = box.ymin - 2 * unit - height
    if y < 0:
        y = min(box.ymin + 3 * unit, max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour, outline="white", width=unit)
    pen.text((x + 2 * unit - left, y + 2 * unit - top), box.label, fill="white", font=font)
