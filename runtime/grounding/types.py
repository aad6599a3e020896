"""Boxes, masks and entities: what an answer says about regions of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

#: two patch indices, or (xmin, ymin, xmax, ymax) in 0..1
PatchBox: TypeAlias = Sequence[int] | Sequence[float]
#: for each phrase of a prompt: nothing, a box, or several
PhraseBoxes: TypeAlias = Sequence[PatchBox | Sequence[PatchBox] | None]


@dataclass(frozen=True)
class Box:
    """A labelled box in pixels of the given image; the far edges are exclusive."""

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
        pixels: (height, width) of bool, the whole image; None where the bundle has no decoder of masks.
    """

    label: str
    box: Box
    codes: tuple[int, ...]
    pixels: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Entity:
    """A phrase of a caption and its boxes: `caption[start:end]` is `label`."""

    label: str
    start: int
    end: int
    boxes: list[Box]


@dataclass(frozen=True)
class Grounded:
    """The boxes, masks and entities of one answer.

    Attributes:
        boxes: in pixels of the image.
        masks: without pixels.
        caption: prompt and answer as one text without tags, where the model writes boxes into its text.
        entities: the phrases of the caption that have boxes.
    """

    boxes: list[Box] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    caption: str | None = None
    entities: list[Entity] = field(default_factory=list)


def run_lengths(pixels: np.ndarray) -> dict[str, list[int]]:
    """A mask (height, width) of bool for JSON, as COCO's uncompressed run lengths: `size` (height, width) and `counts`,
    the lengths of runs down the columns, in turn outside and inside."""
    down = np.concatenate([[False], pixels.ravel(order="F")])
    ends = np.flatnonzero(np.diff(down, append=not down[-1]))
    return {"size": list(pixels.shape), "counts": np.diff(ends, prepend=0).tolist()}
