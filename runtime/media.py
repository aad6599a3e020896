"""The pictures and videos of a prompt as the vision encoder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..graphs import InputError
from ..graphs.manifest import Manifest
from .images import reading as image
from .images import video
from .images.reading import ImageInput
from .images.video import VideoInput
from .limits import Limits


@dataclass(frozen=True)
class Media:
    """Pictures and videos as tiles (tiles, 3, height, width) each, and width and height of the first picture."""

    images: list[np.ndarray] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.images) + len(self.videos)

    def __add__(self, more: Media) -> Media:
        return Media(self.images + more.images, self.videos + more.videos, self.size or more.size)


def read(images: Sequence[ImageInput], videos: Sequence[VideoInput], manifest: Manifest, limits: Limits) -> Media:
    """Read pictures and videos and cut them into tiles.

    Raises:
        InputError: for what cannot be read, is beyond the limits or not taken by the model.
    """
    limits.check_images(len(images) + len(videos))
    if videos and manifest.video is None:
        raise InputError(f"this model takes no videos, {len(videos)} given")
    frames = [video.tiles(some, manifest.video, limits.max_pixels) for some in videos] if manifest.video else []
    tiles, sizes = [], []
    for picture in images:
        opened = image.read(picture, limits.max_pixels)
        tiles.append(image.tiles(opened, manifest.image))
        sizes.append(opened.size)
    return Media(tiles, frames, sizes[0] if sizes else None)
