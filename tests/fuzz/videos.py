"""Damaged video files."""

from __future__ import annotations

import random
import tempfile
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from onnx_vlm.graphs.manifest import PixelScaling, Resize, Video
from onnx_vlm.runtime.images import video
from onnx_vlm.runtime.limits import Limits

from .campaign import Files, Target, write
from .mutations import damage

#: Endings of files, and codecs in them.
WAYS = {"mp4": "mpeg4", "mov": "mjpeg", "mkv": "mpeg4", "avi": "mpeg4", "ts": "mpeg2video", "flv": "flv", "gif": "gif"}
MAX_PIXELS = 1 << 20
COUNT = 4
RECIPE = Video(COUNT, Resize(8, 8, PixelScaling("bilinear", 1.0, (0.0,) * 3, (1.0,) * 3)), rate=5.0)


@lru_cache
def originals() -> dict[str, bytes]:
    """A video of 10 small frames in each container."""
    with tempfile.TemporaryDirectory() as folder:
        return {ending: _written(Path(folder) / f"video.{ending}", codec) for ending, codec in WAYS.items()}


def _written(path: Path, codec: str) -> bytes:
    rows, columns = np.mgrid[:32, :48]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 48, 32
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        for index in range(10):
            levels = np.stack([rows * 7, columns * 5, rows * 0 + 25 * index], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels)))
        container.mux(stream.encode(None))
    return path.read_bytes()


def make(rng: random.Random) -> Files:
    ending = rng.choice(sorted(originals()))
    data = originals()[ending]
    # Half of the damage goes into the beginning or the end, where sizes and indexes are.
    cut = rng.choice((0, 0, 600, len(data) - 600))
    return {f"video.{ending}": data[:cut] + damage(rng, data[cut:]) if rng.random() < 0.5 else damage(rng, data)}


@lru_cache
def _expected(ending: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{ending}"
        path.write_bytes(originals()[ending])
        return [frame.tobytes() for frame in video.frames(path, RECIPE).frames]


def run(files: Files, folder: Path) -> str:
    """Any frames are an answer: damaged bytes may be other pixels, and fewer frames."""
    write(files, folder)
    (name,) = files
    sampled = video.frames(folder / name, RECIPE, Limits(max_pixels=MAX_PIXELS))
    taken = sampled.frames
    assert 1 <= len(taken) == len(sampled.seconds) <= COUNT, sampled.seconds
    assert all(frame.mode == "RGB" for frame in taken)
    return "same" if [frame.tobytes() for frame in taken] == _expected(Path(name).suffix[1:]) else "other pixels"


TARGET = Target("videos", make, run)
