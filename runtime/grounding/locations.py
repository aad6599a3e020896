"""Boxes and masks in answers, read from location tokens and codes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ...graphs import InputError
from ...graphs.manifest import LocationTokens
from ..text.prompt import PromptInput
from .grammar import DONE, Grammar, Kind, Table, Vocabulary
from .types import Box, Grounded, Mask, PhraseBoxes


class Locations:
    """Boxes written as location tokens, each with an optional label and an optional mask code."""

    tagged = False
    reads_prompt = False

    def __init__(self, described: LocationTokens) -> None:
        self._described = described

    def read(self, text: str, size: tuple[int, int] | None) -> Grounded:
        """The boxes and masks of an answer; none without an image to measure them in."""
        if size is None:
            return Grounded()
        return Grounded(boxes(text, self._described, *size), masks(text, self._described, *size))

    def with_boxes(self, prompt: PromptInput, boxes: PhraseBoxes) -> str:
        raise InputError("this model takes no bboxes; leave them out")

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        """`box label ; box label`: the edges of a box that is not empty, all codes of a mask or none, a label if any.

        Or nothing at all, which says that nothing was found.
        """
        format = self._described
        label = {Kind.TEXT: "label", Kind.SPACE: "label", Kind.SEPARATOR: "next", Kind.END: DONE}
        edges, codes = len(format.edges), format.codes
        table: Table = {
            "nothing": {Kind.LOCATION: "edge 1", Kind.END: DONE},
            **{f"edge {n}": {Kind.LOCATION: f"edge {n + 1}"} for n in range(1, edges)},
            f"edge {edges}": label | {Kind.CODE: "code 1"},
            **{f"code {n}": {Kind.CODE: f"code {n + 1}"} for n in range(1, codes)},
            f"code {codes}": label,
            "label": label,
            "next": {Kind.SPACE: "spaced", Kind.LOCATION: "edge 1"},
            "spaced": {Kind.LOCATION: "edge 1"},
            DONE: {Kind.END: DONE},
        }
        kinds = vocabulary.kinds(format.separator)
        kinds[vocabulary.known(map(format.code.format, range(format.code_values)))] = Kind.CODE
        bins = vocabulary.all(map(format.token.format, range(format.bins)))
        kinds[bins] = Kind.LOCATION

        def inside(earlier: Sequence[int]) -> np.ndarray:
            """A far edge lies behind the near one, which leaves room for it."""
            every, name = np.arange(format.bins), format.edges[len(earlier) % edges]
            if name.endswith("min"):
                return every < format.bins - 1
            return every > earlier[format.edges.index(f"{name[:-3]}min")]

        final = {f"edge {edges}", f"code {codes}", "label", DONE}
        return Grammar(table, frozenset(final), False, kinds, bins, inside)


def boxes(text: str, format: LocationTokens, width: int, height: int) -> list[Box]:
    """The boxes of an answer about an image of `width` x `height` pixels; runs of other than four tokens are none.

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
        bins = [int(digits) for digits in re.findall(token, match[0])]
        if len(bins) != len(format.edges):
            continue
        label = re.split(f"{re.escape(format.separator)}|{token}", text[match.end() :], maxsplit=1)[0]
        leading = re.match(rf"(?:\s*{code})*", label)[0]
        codes = tuple(int(digits) for digits in re.findall(code, leading))
        edges = dict(zip(format.edges, bins))
        x, y = width / format.bins, height / format.bins
        sides = edges["xmin"] * x, edges["ymin"] * y, edges["xmax"] * x, edges["ymax"] * y
        yield Box(re.sub(code, "", label).strip(), *sides), codes


def filled(mask: Mask, shape: np.ndarray, width: int, height: int) -> Mask:
    """A mask with its pixels in an image of `width` x `height`: its shape (rows, columns), above 0 inside, as large as
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
