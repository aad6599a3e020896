"""Phrases with boxes: written into prompts, read from answers, as patch tokens of a grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ...graphs import InputError
from ...graphs.manifest import PatchTokens
from ..text.detokenize import untagged
from .locations import Box

#: two patch indices, or (xmin, ymin, xmax, ymax) in 0..1
PatchBox: TypeAlias = Sequence[int] | Sequence[float]
#: for each phrase of a prompt: nothing, a box, or several
PhraseBoxes: TypeAlias = Sequence[PatchBox | Sequence[PatchBox] | None]


@dataclass(frozen=True)
class Entity:
    """A phrase of a caption and its boxes: `caption[start:end]` is `label`."""

    label: str
    start: int
    end: int
    boxes: list[Box]


def with_boxes(prompt: str, boxes: PhraseBoxes | None, format: PatchTokens) -> str:
    """A prompt with the boxes of each phrase in it written behind the phrase.

    Raises:
        InputError: if there are as many boxes as phrases, or a box is none.
    """
    if not boxes:
        return prompt
    opens, closes = map(re.escape, format.phrase)
    phrases = list(re.finditer(f"{opens}.+?{closes}", prompt))
    if len(phrases) != len(boxes):
        raise InputError(
            f"the prompt has {len(phrases)} phrases ({''.join(format.phrase)}), boxes for {len(boxes)} given"
        )
    written, end = "", 0
    for phrase, some in zip(phrases, boxes):
        if some is None:
            some = []
        elif some and not isinstance(some[0], Sequence):
            some = [some]
        pairs = format.separator.join("".join(map(format.token.format, _patches(box, format.side))) for box in some)
        written += prompt[end : phrase.end()] + (pairs and pairs.join(format.object))
        end = phrase.end()
    return written + prompt[end:]


def _patches(box: PatchBox, side: int) -> tuple[int, int]:
    """The upper left and the lower right patch of a box."""
    if len(box) == 2 and all(isinstance(index, int) and 0 <= index < side * side for index in box):
        return box[0], box[1]
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise InputError(
            f"a box is two patches of 0 to {side * side - 1}, or xmin, ymin, xmax, ymax in 0..1, not {box!r}"
        )
    left, top = (math.floor(edge * side) for edge in box[:2])
    right, bottom = (math.ceil(edge * side - 1) for edge in box[2:])
    return top * side + left, bottom * side + right


def read(text: str, format: PatchTokens, width: int, height: int) -> tuple[str, list[Entity]]:
    """The caption in a text, tags removed, and its entities, with boxes in pixels of a `width` x `height` picture.

    Boxes without a phrase are entities each, named by their tokens. Malformed text is read as the
    source model's processor in transformers reads it.
    """
    (opens, closes), (begins, ends) = (map(re.escape, tags) for tags in (format.phrase, format.object))
    token = re.escape(format.token).replace(re.escape("{:04d}"), r"\d+")
    pair = f"{token}{token}"
    pattern = f"(?:{opens}([^<]+){closes})?{begins}((?:{pair}{re.escape(format.separator)})*{pair}){ends}"
    plain = untagged(text)
    caption = plain.strip()
    shift = len(plain) - len(plain.lstrip())
    found = []
    for match in re.finditer(pattern, text):
        numbers = [int(number) for number in re.findall(r"\d+", match[2])]
        pairs = list(zip(numbers[::2], numbers[1::2]))
        phrase, span = match[1], match.span(1) if match[1] else (match.start(), match.start())
        start, end = (len(untagged(text[:place])) - shift for place in span)
        if phrase is None:
            named = [
                (format.token.replace(":04d", "").format(a) + format.token.replace(":04d", "").format(b), [(a, b)])
                for a, b in pairs
            ]
        else:
            named = [(phrase.strip(), pairs)]
            start += len(phrase) - len(phrase.lstrip())
            end -= len(phrase) - len(phrase.rstrip())
        for label, some in named:
            edges = [_edges(first, last, format.side) for first, last in some]
            boxes = [Box(label, x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in edges]
            found.append(Entity(label, start, end, boxes))
    return caption, found


def _edges(first: int, last: int, side: int) -> tuple[float, float, float, float]:
    """The box between two patches, in 0..1: through their centres, or around them if it is one patch high or wide."""
    top, left = divmod(first, side)
    bottom, right = divmod(last, side)
    cell = 1 / side
    if left == right or top == bottom:
        return left * cell, top * cell, right * cell + cell, bottom * cell + cell
    return left * cell + cell / 2, top * cell + cell / 2, right * cell + cell / 2, bottom * cell + cell / 2
