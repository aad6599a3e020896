"""A caller's prompts, images and videos: sorted out into one request a prompt, and read as tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..graphs import InputError
from ..graphs.manifest import Manifest
from .grounding.types import PhraseBoxes
from .images import reading, video
from .images.reading import ImageInput
from .images.tiles import grid_of, tiles
from .images.video import VideoInput
from .limits import Limits
from .text.prompt import PromptInput

Images: TypeAlias = "ImageInput | Sequence[ImageInput]"
Videos: TypeAlias = "VideoInput | Sequence[VideoInput]"

#: Keys of an image or a video in a message, by the type of the part. `None` there is as good as no key.
MEDIA_KEYS = {"image": ("image", "path"), "video": ("video", "path")}
#: Keys under which others give a URL or an encoded file.
FOREIGN_KEYS = ("url", "base64", "image_url", "video_url")


@dataclass(frozen=True)
class Request:
    """One prompt and what it is about; `media` is what has been read of it already."""

    prompt: PromptInput
    images: list[ImageInput]
    videos: list[VideoInput]
    bboxes: PhraseBoxes | None
    media: Media | None = None


@dataclass(frozen=True)
class Media:
    """Images and videos that have been read.

    Attributes:
        images, videos: the tiles (tiles, 3, height, width) of each.
        size: width and height of the first image in pixels.
        grids: columns and rows of the tiles of each image, 0 and 0 where the recipe cuts no grid.
        times: the second at which each frame of a video is shown, and how many seconds it lasts, for each video.
    """

    images: list[np.ndarray] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)
    size: tuple[int, int] | None = None
    grids: list[tuple[int, int]] = field(default_factory=list)
    times: list[tuple[list[int], int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images) + len(self.videos)

    @property
    def tiles(self) -> int:
        """The number of tiles in all."""
        return sum(map(len, (*self.images, *self.videos)))

    def __add__(self, more: Media) -> Media:
        return Media(
            self.images + more.images,
            self.videos + more.videos,
            self.size or more.size,
            self.grids + more.grids,
            self.times + more.times,
        )


def check_answers(manifest: Manifest) -> None:
    """Raise an InputError if a bundle makes vectors and answers nothing."""
    if manifest.kind == "embedding":
        raise InputError(
            "this bundle makes vectors of pages and queries and answers no prompts; use VLM.embed, the command"
            " `onnx-vlm embed`, batch jobs with the task embed, or the server's /v1/embeddings"
        )


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
        InputError: if there are no prompts, one is neither a text nor a conversation, or lists of other lengths stand
            beside them.
    """
    if not is_batch(prompt):
        prompt, images, videos, bboxes = [prompt], [images], [videos], [bboxes]
    if not prompt:
        raise InputError("the list of prompts is empty; give at least one prompt")
    columns = [
        _entries(*column, len(prompt)) for column in (("images", images), ("videos", videos), ("bboxes", bboxes))
    ]
    return [_request(text, listed(image), listed(film), boxes) for text, image, film, boxes in zip(prompt, *columns)]


def _entries(name: str, values: Any, prompts: int) -> Sequence[Any]:
    """An entry of `values` for each prompt."""
    if values is None:
        return [None] * prompts
    if not isinstance(values, (list, tuple)) or len(values) != prompts:
        count = len(values) if isinstance(values, (list, tuple)) else 1
        raise InputError(
            f"{prompts} prompts need {prompts} entries of {name}, {count} given; a list counts as one entry"
        )
    return values


def listed(values: Any) -> list[Any]:
    """Nothing, one thing or several, as a list."""
    if values is None:
        return []
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _request(prompt: Any, images: list[ImageInput], videos: list[VideoInput], bboxes: PhraseBoxes | None) -> Request:
    """A request. Images and videos may also stand in the messages of a conversation: see `MEDIA_KEYS`."""
    if isinstance(prompt, str):
        return Request(prompt, images, videos, bboxes)
    if not isinstance(prompt, (list, tuple)) or not all(isinstance(message, Mapping) for message in prompt):
        raise InputError(f"a prompt is a text or a list of chat messages, not {prompt!r:.80}")
    inside: dict[str, list[Any]] = {"image": [], "video": []}
    for message in prompt:
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            kind, medium = _medium(part)
            if medium is not None:
                inside[kind].append(medium)
    if (images and inside["image"]) or (videos and inside["video"]):
        raise InputError("images and videos stand either in the messages or in images and videos, not in both")
    return Request(prompt, images or inside["image"], videos or inside["video"], bboxes)


def _medium(part: Any) -> tuple[str, Any]:
    """The type of a part of a message, and the image or video in it, None if there is none.

    Raises:
        InputError: for a part that would be left out in silence.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", *MEDIA_KEYS):
        raise InputError(
            f"a part of a message is {part!r:.80}; its type must be text, image or video:"
            ' {"type": "image", "path": "photo.jpg"} has an image in it, and {"type": "image"} stands for the next of'
            " the images given"
        )
    foreign = [key for key in FOREIGN_KEYS if part.get(key) is not None]
    if foreign:
        raise InputError(
            f"a part of a message has the key {foreign[0]!r}; URLs and encoded files are not read: download or decode"
            f' it, and give {{"type": "{kind}", "path": ...}}'
        )
    values = (part[key] for key in MEDIA_KEYS.get(kind, ()) if part.get(key) is not None)
    return kind, next(values, None)


def read(images: Sequence[ImageInput], videos: Sequence[VideoInput], manifest: Manifest, limits: Limits) -> Media:
    """Read images and videos and cut them into tiles, until they are more than a prompt has room for.

    Raises:
        InputError: for an image or a video that cannot be read, is beyond the limits or not taken by the model.
    """
    limits.check_images(len(images) + len(videos))
    if videos and manifest.video is None:
        raise InputError(f"this model takes no videos, {len(videos)} given")
    media = Media()
    for film in videos:
        sampled = video.frames(film, manifest.video, limits)
        media += Media(videos=[video.tiles(sampled, manifest.video)], times=[(sampled.seconds, sampled.duration)])
        limits.check_image_tokens(media.tiles * manifest.tile_tokens, manifest.generation)
    for image in images:
        opened = reading.read(image, limits.max_pixels)
        media += Media([tiles(opened, manifest.image)], [], opened.size, [grid_of(*opened.size, manifest.image)])
        limits.check_image_tokens(media.tiles * manifest.tile_tokens, manifest.generation)
    return media
