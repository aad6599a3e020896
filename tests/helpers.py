"""What tests share besides fixtures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = REPOSITORY / "tests" / "checkpoints"
CHECKPOINT = CHECKPOINTS / "paligemma2"
PHOTOGRAPHS = sorted(path for path in (REPOSITORY / "tests" / "photographs").iterdir() if path.suffix != ".md")
BUNDLES = REPOSITORY / "tests" / "bundles"


def run_command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run `onnx-vlm` as a user does."""
    command = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def write_film(path: Path, frames: int = 30, options: dict[str, str] | None = None) -> Path:
    """A film of 160 x 96 pixels: a window that moves over a photograph."""
    photograph = np.asarray(Image.open(REPOSITORY / "tests" / "photographs" / "chelsea.webp").convert("RGB"))
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.bit_rate = 160, 96, 800_000
        for index in range(frames):
            window = photograph[4 * index : 4 * index + 96, 8 * index : 8 * index + 160]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(window))))
        container.mux(stream.encode(None))
    return path
