"""Ids of answers made into what a caller gets: text, boxes, masks, entities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..graphs.manifest import Manifest
from .generation.strategy import Answer
from .grounding.formats import BoxFormat
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
        best, *others = [self._one(answer, encoded) for answer in answers]
        return dataclasses.replace(best, alternatives=others)

    def _one(self, answer: Answer, encoded: EncodedRequest) -> Generation:
        ids = answer.ids
        grounded = read_boxes(ids, encoded, self._prompts, self._boxes)
        stopped = ids[-1] in self._manifest.generation.eos_token_ids or (
            self._reader.stops is not None and self._reader.stops(ids)
        )
        return Generation(
            text=self._reader.text(ids),
            token_ids=ids,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(encoded.prompt.ids),
            boxes=grounded.boxes,
            masks=self._drawn(grounded.masks, encoded.size),
            caption=grounded.caption,
            entities=grounded.entities,
            score=answer.score,
            logprobs=answer.logprobs,
            timings=self._timings,
        )

    def _drawn(self, masks: list[Mask], size: tuple[int, int] | None) -> list[Mask]:
        """The masks of an answer, with pixels if the bundle can make them."""
        if not masks or size is None or not self._engine.draws_masks:
            return masks
        shapes = self._engine.masks(np.array([mask.codes for mask in masks], np.int64))
        return [filled(mask, shape, *size) for mask, shape in zip(masks, shapes)]


def read_boxes(ids: list[int], encoded: EncodedRequest, prompts: Prompts, boxes: BoxFormat) -> Grounded:
    """The boxes of an answer, complete or not."""
    if boxes.reads_prompt:
        is_image = np.flatnonzero(encoded.prompt.is_image)
        text_start = is_image[-1] + 1 if len(is_image) else 0
        ids = [*encoded.prompt.ids[text_start:], *ids]
    return boxes.read(prompts.decode(ids), encoded.size)
