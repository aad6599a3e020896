"""How a model writes boxes: one class a format, chosen by what the manifest describes."""

from __future__ import annotations

from typing import Protocol

from ...graphs import InputError
from ...graphs.manifest import LocationTokens, PatchTokens
from ..text.prompt import PromptInput
from .grammar import Grammar, Vocabulary
from .locations import Locations
from .patches import Patches
from .types import Grounded, PhraseBoxes


class BoxFormat(Protocol):
    """Reads and writes the boxes of one format.

    Attributes:
        tagged: whether answers hold tags in angle brackets, which users do not see.
        reads_prompt: whether the text to read is prompt and answer together, and not the answer alone.
    """

    tagged: bool
    reads_prompt: bool

    def read(self, text: str, size: tuple[int, int] | None) -> Grounded:
        """The boxes in a text about an image of `size` (width, height); None for no image."""

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        """The grammar of answers with boxes.

        Raises:
            InputError: if the vocabulary lacks a token that boxes are written with.
        """

    def with_boxes(self, prompt: PromptInput, boxes: PhraseBoxes) -> str:
        """A prompt with given boxes written into it.

        Raises:
            InputError: if the model takes no boxes, or they do not fit the prompt.
        """


class NoBoxes:
    """A model that neither writes nor takes boxes."""

    tagged = False
    reads_prompt = False

    def read(self, text: str, size: tuple[int, int] | None) -> Grounded:
        return Grounded()

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        raise InputError("this model writes no boxes; leave constrain out")

    def with_boxes(self, prompt: PromptInput, boxes: PhraseBoxes) -> str:
        raise InputError("this model takes no bboxes; leave them out")


def box_format(described: LocationTokens | PatchTokens | None) -> BoxFormat:
    """The format that a manifest describes."""
    if described is None:
        return NoBoxes()
    formats = {LocationTokens: Locations, PatchTokens: Patches}
    return formats[type(described)](described)
