"""Ids of answers made into what a caller gets: text, boxes, masks, entities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..graphs.manifest import Manifest
from .generation.strategy import Answer
from .grounding.formats import BoxFormat, NoBoxes
from .grounding.locations import filled
from .grounding.types import Grounded, Mask
from .inference.engine import Engine
from .results import Generation
from .text.detokenize import Reader
from .text.prompt import EncodedPrompt, Prompts


@dataclass(frozen=True)
class EncodedRequest:
    """A request as the graphs take it.

    Attributes:
        prompt: its ids and tiles.
        size: width and height of its first image in pixels; None without an image.
    """

    prompt: EncodedPrompt
    size: tuple[int, int] | None = None


class Assembly:
    """Assembles the answers of one call.

    Args:
        manifest, prompts, boxes, engine: those of the pipeline.
        reader: reads an answer's text.
        timings: of the call.
    """

    def __init__(
        self,
        manifest: Manifest,
        prompts: Prompts,
        boxes: BoxFormat,
        engine: Engine,
        reader: Reader,
        timings: dict[str, float],
    ) -> None:
        self._manifest, self._prompts, self._boxes, self._engine = manifest, prompts, boxes, engine
        self._reader, self._timings = reader, timings

    def generation(self, answers: list[Answer], encoded: EncodedRequest) -> Generation:
        """The best answer to a request, with the others as its alternatives."""
        regions = Regions(self._prompts, self._boxes, self._engine, encoded)
        best, *others = [self._one(answer, encoded, regions) for answer in answers]
        return dataclasses.replace(best, alternatives=others)

    def _one(self, answer: Answer, encoded: EncodedRequest, regions: Regions) -> Generation:
        ids, grounded = answer.ids, regions(answer.ids)
        stopped = ids[-1] in self._manifest.generation.eos_token_ids or (
            self._reader.stops is not None and self._reader.stops(ids)
        )
        return Generation(
            text=self._reader.text(ids),
            token_ids=ids,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(encoded.prompt.ids),
            boxes=grounded.boxes,
            masks=grounded.masks,
            caption=grounded.caption,
            entities=grounded.entities,
            score=answer.score,
            logprobs=answer.logprobs,
            timings=self._timings,
        )


class Regions:
    """Reads what answers to one request say of regions, complete or not. The pixels of a mask are computed once.

    Args:
        prompts, boxes, engine: those of the pipeline.
        encoded: the request.
    """

    def __init__(self, prompts: Prompts, boxes: BoxFormat, engine: Engine, encoded: EncodedRequest) -> None:
        self._prompts, self._boxes, self._engine, self._size = prompts, boxes, engine, encoded.size
        self._before: list[int] = []  # ids in front of an answer that are read with it
        if boxes.reads_prompt:
            is_image = np.flatnonzero(encoded.prompt.is_image)
            self._before = encoded.prompt.ids[is_image[-1] + 1 if len(is_image) else 0 :].tolist()
        self._drawn: dict[tuple[float, ...], np.ndarray | None] = {}  # pixels by codes and edges

    def __call__(self, ids: list[int]) -> Grounded:
        """Boxes, masks and entities in the ids of an answer; masks have pixels if the bundle can make them."""
        if isinstance(self._boxes, NoBoxes):
            return Grounded()
        grounded = self._boxes.read(self._prompts.decode([*self._before, *ids]), self._size)
        if self._size is None or not self._engine.draws_masks:
            return grounded
        new = {key: mask for mask in grounded.masks if (key := _shape_of(mask)) not in self._drawn}
        if new:
            shapes = self._engine.masks(np.array([mask.codes for mask in new.values()], np.int64))
            for (key, mask), shape in zip(new.items(), shapes):
                self._drawn[key] = filled(mask, shape, *self._size).pixels
        masks = [dataclasses.replace(mask, pixels=self._drawn[_shape_of(mask)]) for mask in grounded.masks]
        return dataclasses.replace(grounded, masks=masks)


def _shape_of(mask: Mask) -> tuple[float, ...]:
    """All of a mask but its label."""
    box = mask.box
    return (*mask.codes, box.xmin, box.ymin, box.xmax, box.ymax)
