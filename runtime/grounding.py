"""Boxes in answers: read from location tokens, drawn on pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

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


def boxes(text: str, format: LocationTokens, width: int, height: int) -> list[Box]:
    """The boxes of an answer about a picture of `width` x `height` pixels; runs of other than four tokens are none.

    A label reaches to the separator, the next location token or the end; codes in front of it are no part of it.
    """
    token, code = (re.sub(r"\\\{.*\\\}", r"(\\d+)", re.escape(form)) for form in (format.token, format.code))
    found = []
    for match in re.finditer(f"(?:{token})+", text):
        bins = [int(number) for number in re.findall(token, match[0])]
        if len(bins) != len(format.edges):
            continue
        label = re.split(f"{re.escape(format.separator)}|{token}", text[match.end() :], maxsplit=1)[0]
        label = re.sub(code, "", label)
        edges = dict(zip(format.edges, bins))
        x, y = width / format.bins, height / format.bins
        found.append(Box(label.strip(), edges["xmin"] * x, edges["ymin"] * y, edges["xmax"] * x, edges["ymax"] * y))
    return found


def draw(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
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
