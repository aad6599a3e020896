"""Phrases with boxes: written into prompts, read from answers, as patch tokens of a grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from ...graphs import InputError
from ...graphs.manifest import PatchTokens
from ..text.detokenize import untagged
from ..text.prompt import PromptInput
from .grammar import DONE, Grammar, Kind, Table, Vocabulary
from .types import Box, Entity, Grounded, PatchBox, PhraseBoxes


class Patches:
    """Text with phrases, each followed by its boxes as pairs of patch tokens."""

    tagged = True
    reads_prompt = True

    def __init__(self, described: PatchTokens) -> None:
        self._described = described

    def read(self, text: str, size: tuple[int, int] | None) -> Grounded:
        """The caption and its entities; boxes are in 0..1 without an image."""
        caption, entities = read(text, self._described, *(size or (1, 1)))
        return Grounded([box for entity in entities for box in entity.boxes], [], caption, entities)

    def with_boxes(self, prompt: PromptInput, boxes: PhraseBoxes) -> str:
        """A prompt with the boxes of each phrase in it written after the phrase."""
        if not isinstance(prompt, str):
            raise InputError("bboxes belong to the phrases of one text, not to chat messages; leave them out")
        return with_boxes(prompt, boxes, self._described)

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        """Text with at least one phrase that is followed by its boxes, pairs of patches; every phrase is."""
        format = self._described
        table: Table = {
            "text": {Kind.TEXT: "text", Kind.SPACE: "text", Kind.OPEN_PHRASE: "phrase"},
            "phrase": {Kind.TEXT: "named", Kind.SPACE: "phrase"},
            "named": {Kind.TEXT: "named", Kind.SPACE: "named", Kind.CLOSE_PHRASE: "phrased"},
            "phrased": {Kind.OPEN_BOXES: "box"},
            "box": {Kind.LOCATION: "corner"},
            "corner": {Kind.LOCATION: "boxed"},
            "boxed": {Kind.SEPARATOR: "box", Kind.CLOSE_BOXES: "grounded"},
            "grounded": {
                Kind.TEXT: "grounded",
                Kind.SPACE: "grounded",
                Kind.OPEN_PHRASE: "phrase",
                Kind.END: DONE,
            },
            DONE: {Kind.END: DONE},
        }
        kinds = vocabulary.kinds(None)
        tags = vocabulary.all((*format.phrase, *format.object, format.separator))
        kinds[tags] = [Kind.OPEN_PHRASE, Kind.CLOSE_PHRASE, Kind.OPEN_BOXES, Kind.CLOSE_BOXES, Kind.SEPARATOR]
        patches = vocabulary.all(map(format.token.format, range(format.side**2)))
        kinds[patches] = Kind.LOCATION
        rows, columns = np.divmod(np.arange(format.side**2), format.side)

        def inside(earlier: Sequence[int]) -> np.ndarray:
            """The second patch lies in no row above and no column before the first one."""
            if len(earlier) != 1:
                return np.ones(len(patches), bool)
            row, column = divmod(earlier[0], format.side)
            return (rows >= row) & (columns >= column)

        return Grammar(table, frozenset({"grounded", DONE}), True, kinds, patches, inside)


def with_boxes(prompt: str, boxes: PhraseBoxes | None, format: PatchTokens) -> str:
    """A prompt with the boxes of each phrase written behind the phrase.

    Raises:
        InputError: if the numbers of phrases and boxes differ, or a box is malformed.
    """
    if boxes is None or (_is_sequence(boxes) and not len(boxes)):
        return prompt
    if not _is_sequence(boxes):
        raise InputError(f"bboxes is {boxes!r:.80}; give a list with an entry for each phrase")
    opens, closes = map(re.escape, format.phrase)
    phrases = list(re.finditer(f"{opens}.+?{closes}", prompt))
    if len(phrases) != len(boxes):
        raise InputError(
            f"the prompt has {len(phrases)} phrases ({''.join(format.phrase)}), boxes for {len(boxes)} given"
        )
    written, end = "", 0
    for phrase, entry in zip(phrases, boxes):
        patches = (_patches(box, format.side) for box in _listed(entry))
        pairs = format.separator.join("".join(map(format.token.format, pair)) for pair in patches)
        written += prompt[end : phrase.end()] + (pairs and pairs.join(format.object))
        end = phrase.end()
    return written + prompt[end:]


def _listed(entry: PatchBox | Sequence[PatchBox] | None) -> Sequence[PatchBox]:
    """The boxes of a phrase, given as None, a box or several boxes."""
    if entry is None:
        return []
    is_box = not _is_sequence(entry) or (len(entry) and not _is_sequence(entry[0]))
    return [entry] if is_box else entry


def _patches(box: PatchBox, side: int) -> tuple[int, int]:
    """The upper left and the lower right patch of a box."""
    if _is_sequence(box) and all(isinstance(value, Real) and not isinstance(value, bool) for value in box):
        if len(box) == 2 and all(isinstance(index, Integral) and 0 <= index < side * side for index in box):
            return int(box[0]), int(box[1])
        if len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1:
            left, top = (math.floor(edge * side) for edge in box[:2])
            right, bottom = (math.ceil(edge * side - 1) for edge in box[2:])
            return top * side + left, bottom * side + right
    raise InputError(
        f"a box is two patches of 0 to {side * side - 1}, or xmin, ymin, xmax, ymax in 0..1, not {box!r:.80}"
    )


def _is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def read(text: str, format: PatchTokens, width: int, height: int) -> tuple[str, list[Entity]]:
    """The caption in a text, tags removed, and its entities, with boxes in pixels of a `width` x `height` image.

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
    entities = []
    for match in re.finditer(pattern, text):
        numbers = [int(digits) for digits in re.findall(r"\d+", match[2])]
        pairs = list(zip(numbers[::2], numbers[1::2]))
        phrase, span = match[1], match.span(1) if match[1] else (match.start(), match.start())
        start, end = (len(untagged(text[:index])) - shift for index in span)
        if phrase is None:
            named = [
                (format.token.replace(":04d", "").format(a) + format.token.replace(":04d", "").format(b), [(a, b)])
                for a, b in pairs
            ]
        else:
            named = [(phrase.strip(), pairs)]
            start += len(phrase) - len(phrase.lstrip())
            end -= len(phrase) - len(phrase.rstrip())
        for label, corners in named:
            edges = [_edges(first, last, format.side) for first, last in corners]
            boxes = [Box(label, x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in edges]
            entities.append(Entity(label, start, end, boxes))
    return caption, entities


def _edges(first: int, last: int, side: int) -> tuple[float, float, float, float]:
    """The box between two patches, in 0..1: through their centres, or around them if it is one patch high or wide."""
    top, left = divmod(first, side)
    bottom, right = divmod(last, side)
    cell = 1 / side
    if left == right or top == bottom:
        return left * cell, top * cell, right * cell + cell, bottom * cell + cell
    return left * cell + cell / 2, top * cell + cell / 2, right * cell + cell / 2, bottom * cell + cell / 2
