"""Boxes and masks in answers, read from location tokens and codes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...graphs.manifest import LocationTokens


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
    token, code = (re.sub(r"\\\{.*\\\}", r"(\\d+)", re.escape(form)) for form in (format.token, format.code))
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
