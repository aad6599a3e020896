"""What a caller may pass to `generate`, sorted out into one request a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..graphs import InputError
from .grounding.types import PhraseBoxes
from .images.reading import ImageInput
from .images.video import VideoInput
from .text.prompt import PromptInput

Images: TypeAlias = "ImageInput | Sequence[ImageInput]"
Videos: TypeAlias = "VideoInput | Sequence[VideoInput]"


@dataclass(frozen=True)
class Request:
    """One prompt and what it is about."""

    prompt: PromptInput
    images: list[ImageInput]
    videos: list[VideoInput]
    bboxes: PhraseBoxes | None


def is_batch(prompt: Any) -> bool:
    """Whether several prompts are given: a list that is no conversation."""
    return isinstance(prompt, (list, tuple)) and not any(isinstance(message, Mapping) for message in prompt)


def requests(
    prompt: PromptInput | Sequence[PromptInput],
    images: Images | Sequence[Images | None] | None,
    videos: Videos | Sequence[Videos | None] | None,
    bboxes: PhraseBoxes | Sequence[PhraseBoxes | None] | None,
) -> list[Request]:
    """A request for each prompt.

    Raises:
        InputError: if there are no prompts, or lists of other lengths beside them.
    """
    if not is_batch(prompt):
        prompt, images, videos, bboxes = [prompt], [images], [videos], [bboxes]
    if not prompt:
        raise InputError("the list of prompts is empty; give at least one prompt")
    columns = [
        _entries(*column, len(prompt)) for column in (("images", images), ("videos", videos), ("bboxes", bboxes))
    ]
    return [_request(one, listed(some), listed(moving), boxes) for one, some, moving, boxes in zip(prompt, *columns)]


def _entries(name: str, given: Any, prompts: int) -> Sequence[Any]:
    """An entry of `given` for each prompt."""
    if given is None:
        return [None] * prompts
    if not isinstance(given, (list, tuple)) or len(given) != prompts:
        number = len(given) if isinstance(given, (list, tuple)) else 1
        raise InputError(
            f"{prompts} prompts need {prompts} entries of {name}, {number} given; a list counts as one entry"
        )
    return given


def listed(some: Any) -> list[Any]:
    """What a caller gave, as a list: nothing, one thing or several."""
    if some is None:
        return []
    return list(some) if isinstance(some, (list, tuple)) else [some]


def _request(prompt: Any, images: list[ImageInput], videos: list[VideoInput], bboxes: PhraseBoxes | None) -> Request:
    """Pictures and videos may also stand in the messages of a conversation, under "image", "video" or "path"."""
    if isinstance(prompt, str):
        return Request(prompt, images, videos, bboxes)
    inside: dict[str, list[Any]] = {"image": [], "video": []}
    for message in prompt:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in inside and (medium := part.get(kind, part.get("path"))) is not None:
                inside[kind].append(medium)
    if (images and inside["image"]) or (videos and inside["video"]):
        raise InputError("pictures and videos stand either in the messages or in images and videos, not in both")
    return Request(prompt, images or inside["image"], videos or inside["video"], bboxes)
