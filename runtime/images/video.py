"""Videos: frames out of a file, a folder or an array, evenly sampled. PyAV is needed for files alone."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from ...graphs import InputError
from ...graphs.manifest import Video
from ..limits import Limits
from .reading import SUFFIXES, check_size, error_text, existing, read
from .tiles import tiles as tiles_of_image

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

#: Containers by FFmpeg's names. It knows some 350 more: playlists and lists that name other files, text as video.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"

VideoInput: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray"


#: Frames a second of a video that is given as frames, as processors in transformers assume.
USUAL_RATE = 24.0
SLOWEST_RATE = 1e-3  #: a file that names less, or nothing, is taken as one of the usual rate


class Sampled(NamedTuple):
    """Frames of a video, RGB; the second at which each is shown, and how many seconds the video lasts, rounded down."""

    frames: list[Image.Image]
    seconds: list[int]
    duration: int


def tiles(sampled: Sampled, recipe: Video) -> np.ndarray:
    """The frames of a video as tiles, (frames, 3, height, width) of float32."""
    return np.concatenate([tiles_of_image(frame, recipe.tile) for frame in sampled.frames])


def sample_in_time(total: int, rate: float, recipe: Video) -> list[int]:
    """Which of `total` frames to take, of a video that shows `rate` a second.

    The arithmetic is that of the video processor in transformers, so that the same frames are taken.
    """
    if recipe.rate is None:
        return sample(total, recipe.frames)
    duration = total / rate
    count = max(1, min(round(recipe.rate * duration), recipe.frames))
    first, last = 0, total - 1
    if recipe.margin > 0 and duration - 2 * recipe.margin > recipe.frames * recipe.rate:
        inner = int(recipe.margin * rate), min(int(total - recipe.margin * rate), last)
        first, last = inner if inner[0] < inner[1] else (first, last)
    return np.unique(np.linspace(first, last, count, dtype=int)).tolist()


def sample(total: int, count: int) -> list[int]:
    """Which of `total` frames to take: `count` of them, evenly, or all if there are no more."""
    return [index * total // count for index in range(count)] if total > count else list(range(total))


def frames(video: VideoInput, recipe: Video, limits: Limits | None = None) -> Sampled:
    """The frames of a video that a recipe takes.

    Args:
        video: the path of a file, the bytes of one, the path of a folder with an image a frame (in the order of their
            names, numbers by value) or an array (frames, height, width, 3) of uint8.
        limits: bound the pixels of a frame, before it is decoded, and the frames of a file.

    Raises:
        InputError: if there is no such file, it is damaged, has no frames, too many or too large ones, or the array has
            another shape or dtype.
    """
    limits = limits or Limits()
    if isinstance(video, np.ndarray):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
            raise InputError(
                f"a video given as an array is (frames, height, width, 3) of uint8, not {video.shape} of {video.dtype}"
            )
        return _given(video, recipe.frames, limits)
    if isinstance(video, bytes):
        return _decoded(io.BytesIO(video), f"the {len(video)} bytes given", recipe, limits)
    if not isinstance(video, (str, os.PathLike)):
        raise InputError(f"a video is a path, bytes or a uint8 array, not {type(video).__name__}")
    path = existing(video, "video")
    try:
        files = sorted((file for file in path.iterdir() if _is_image(file)), key=_by_number) if path.is_dir() else None
        if files is None:
            with path.open("rb") as file:
                return _decoded(file, str(path), recipe, limits)
    except OSError as error:
        raise InputError(f"{path}: the video cannot be read: {error_text(error)}") from None
    if not files:
        raise InputError(f"{path} has no images in it; a folder given as a video has an image a frame")
    return _given(files, recipe.frames, limits)


def _given(images: Sequence[Path] | np.ndarray, count: int, limits: Limits) -> Sampled:
    """At most `count` of the frames that a video is given as."""
    chosen = sample(len(images), count)
    taken = [read(images[index], limits.max_pixels) for index in chosen]
    return Sampled(taken, [int(index / USUAL_RATE) for index in chosen], int((len(images) - 1) / USUAL_RATE))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _by_number(file: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _decoded(file: BinaryIO, name: str, recipe: Video, limits: Limits) -> Sampled:
    try:
        import av
    except ImportError:
        raise InputError(f"{name}: reading video files needs PyAV: pip install 'onnx-vlm[video]'") from None
    _check_whole(file, name)
    # FFmpeg reads this file alone: it is given no path, and may open no other.
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        with av.open(file, options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError(f"{name}: the file has no video in it")
            return _sampled(container, name, recipe, limits)
    except InputError:
        raise
    except Exception as error:  # decoders raise errors of many kinds
        raise InputError(
            f"{name}: the video cannot be read: {error_text(error)}; containers that are read are {CONTAINERS}"
        ) from error


def _sampled(container: InputContainer, name: str, recipe: Video, limits: Limits) -> Sampled:
    stream = container.streams.video[0]
    check_size(stream.width, stream.height, name, limits.max_pixels)
    # Some formats do not store the number of frames: count them then.
    total = stream.frames or sum(1 for _ in islice(container.decode(video=0), limits.max_video_frames + 1))
    if total > limits.max_video_frames:
        raise InputError(
            f"{name}: more than {limits.max_video_frames} frames, which is the limit max_video_frames; give a part of"
            " it, or a folder with the frames that matter"
        )
    container.seek(0)
    rate = float(stream.average_rate or 0)
    rate = rate if rate > SLOWEST_RATE else USUAL_RATE
    indices = sample_in_time(total, rate, recipe)
    taken = [_image(frame, name, limits) for frame in _at(container.decode(video=0), indices)]
    if not taken:
        raise InputError(f"{name}: the video has no frames")
    # Some files promise more frames than they have.
    return Sampled(taken, [int(index / rate) for index in indices[: len(taken)]], int(total / rate))


def _at(decoded: Iterator[VideoFrame], indices: list[int]) -> Iterator[VideoFrame]:
    """The frames at rising indices."""
    last = indices[-1] + 1 if indices else 0
    return (frame for index, frame in enumerate(islice(decoded, last)) if index in indices)


def _image(frame: VideoFrame, name: str, limits: Limits) -> Image.Image:
    check_size(frame.width, frame.height, name, limits.max_pixels)  # it may change on the way
    return frame.to_image()


def _check_whole(file: BinaryIO, name: str) -> None:
    """Raise an InputError for an MP4 or QuickTime file that ends early: FFmpeg plays what there is of it.

    Such a file is a row of boxes, each with its size in 4 bytes and its type in 4; a size of 1 stands in the next 8
    bytes, and 0 is a box up to the end (ISO/IEC 14496-12).
    """
    end, start = file.seek(0, os.SEEK_END), 0
    while start < end:
        file.seek(start)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if start == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            break
        size = int.from_bytes(header[8:16], "big") if size == 1 else size
        if start + size > end:
            raise InputError(
                f"{name}: the video is cut off: {end} bytes, and its box {kind.decode('latin-1')!r} ends at"
                f" {start + size}; get the whole file"
            )
        if size < 8:  # 0 is the last box; less cannot be, which FFmpeg will say
            break
        start += size
    file.seek(0)
