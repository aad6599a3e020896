"""Processes that read images: what they return, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.graphs import InputError, manifest
from onnx_vlm.runtime import inputs
from onnx_vlm.runtime.batch.readers import Readers
from onnx_vlm.runtime.inputs import Media
from onnx_vlm.runtime.limits import Limits


class Bomb:
    """An image that ends whichever process takes it."""

    def __reduce__(self) -> tuple:
        return os._exit, (3,)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "0.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT)).save(path)
    return path


@pytest.fixture(scope="module")
def readers(bundle: Path) -> Iterator[Readers]:
    readers = Readers(manifest.load(bundle), Limits(max_pixels=200_000), 1)
    yield readers
    readers.close()
    assert all(process.poll() is not None for process in readers._processes)
    (late,) = readers.read([([b"late"], [])])
    assert isinstance(late, InputError)


def is_tiles_of(media: Media | Exception, image: Path, bundle: Path) -> bool:
    expected = inputs.read([image], [], manifest.load(bundle), Limits())
    assert isinstance(media, Media)
    return media.size == expected.size and np.array_equal(media.images[0], expected.images[0])


def test_they_return_tiles_and_errors_in_order(readers: Readers, bundle: Path, image: Path):
    large = np.zeros((1000, 1000, 3), np.uint8)
    first, none, broken, too_large, last = readers.read(
        [([image], []), ([], []), ([b"broken"], []), ([large], []), ([image.read_bytes()], [])]
    )
    assert is_tiles_of(first, image, bundle)
    assert is_tiles_of(last, image, bundle)
    assert isinstance(none, Media)
    assert len(none) == 0
    assert "not an image" in str(broken)
    assert "the limit max_pixels is 200000" in str(too_large)
    assert isinstance(broken, InputError)


def test_an_image_that_ends_a_process_is_one_error(readers: Readers, bundle: Path, image: Path):
    first, bomb, last = readers.read([([image], []), ([Bomb()], []), ([image], [])])
    assert is_tiles_of(first, image, bundle)
    assert is_tiles_of(last, image, bundle)
    assert isinstance(bomb, InputError)
    assert "ended the process that read it (status 3)" in str(bomb)


def test_a_process_that_was_killed_is_made_anew(readers: Readers, bundle: Path, image: Path):
    (process,) = readers._processes
    process.kill()
    process.wait()
    first, last = readers.read([([image], [])] * 2)
    assert is_tiles_of(first, image, bundle)
    assert is_tiles_of(last, image, bundle)


def test_they_end_with_a_process_that_is_killed(bundle: Path):
    code = f"""
from pathlib import Path
import time
from onnx_vlm.graphs import manifest
from onnx_vlm.runtime.batch.readers import Readers
from onnx_vlm.runtime.limits import Limits
readers = Readers(manifest.load(Path({str(bundle)!r})), Limits(), 2)
print(*(process.pid for process in readers._processes), flush=True)
time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pids = list(map(int, driver.stdout.readline().split()))
    assert len(pids) == 2
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    deadline = time.monotonic() + 100
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a reader goes on"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether there is a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
