"""Videos: frames out of a file, a folder or an array, evenly sampled. PyAV is needed for files alone."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from ...graphs import InputError
from ...graphs.manifest import Video
from ..limits import MAX_PIXELS
from . import reading as image

VideoInput: TypeAlias = "str | os.PathLike[str] | np.ndarray"


def tiles(video: VideoInput, recipe: Video, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The sampled frames of a video as tiles, (frames, 3, height, width) of float32.

    Args:
        video: the path of a file, the path of a folder with a picture a frame (in the order of their names, numbers by
            value) or an array (frames, height, width, 3) of uint8.
        max_pixels: frames of more are refused before they are decoded.

    Raises:
        InputError: if there is no such file, it has no frames or too large ones, or the array has another shape or
            dtype.
    """
    return np.concatenate([image.tiles(frame, recipe.tile) for frame in frames(video, recipe.frames, max_pixels)])


def sample(total: int, count: int) -> list[int]:
    """Which of `total` frames to take: `count` of them, evenly, or all if there are no more."""
    return [index * total // count for index in range(count)] if total > count else list(range(total))


def frames(video: VideoInput, count: int, max_pixels: int = MAX_PIXELS) -> list[Image.Image]:
    """At most `count` frames of a video, RGB."""
    if isinstance(video, np.ndarray):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
            raise InputError(
                f"a video given as an array is (frames, height, width, 3) of uint8, not {video.shape} of {video.dtype}"
            )
        return [image.read(video[index], max_pixels) for index in sample(len(video), count)]
    if not isinstance(video, (str, os.PathLike)):
        raise InputError(f"a video is a path or a uint8 array, not {type(video).__name__}")
    path = Path(video)
    if path.is_dir():
        found = sorted((file for file in path.iterdir() if _is_picture(file)), key=_by_number)
        if not found:
            raise InputError(f"{path} has no pictures in it; a folder given as a video has a picture a frame")
        return [image.read(found[index], max_pixels) for index in sample(len(found), count)]
    if not path.exists():
        raise InputError(f"there is no video {path}; check the path")
    return _decoded(path, count, max_pixels)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in Image.registered_extensions() and not file.name.startswith(".")


def _by_number(file: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _decoded(path: Path, count: int, max_pixels: int) -> list[Image.Image]:
    try:
        import av
    except ImportError:
        raise InputError(f"{path}: reading video files needs PyAV: pip install 'onnx-vlm[video]'") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: the file has no video in it")
            stream = container.streams.video[0]
            image.check_size(stream.width, stream.height, str(path), max_pixels)
            # Some formats do not store the number of frames: count them then.
            total = stream.frames or sum(1 for _ in container.decode(video=0))
            container.seek(0)
            wanted = set(sample(total, count))
            decoded = islice(container.decode(video=0), max(wanted, default=-1) + 1)
            taken = [frame.to_image() for index, frame in enumerate(decoded) if index in wanted]
    except av.FFmpegError as error:
        raise InputError(f"{path}: the video cannot be read: {error}") from None
    if not taken:
        raise InputError(f"{path}: the video has no frames")
    return taken
