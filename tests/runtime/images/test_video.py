"""Frames of videos; what they become is compared with transformers in `test_processors.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import write_film
from onnx_vlm.graphs.manifest import Pixels, Resize, Video
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.images.video import frames, sample, tiles
from PIL import Image

RECIPE = Video(3, Resize("resize", 14, 28, Pixels("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))))


def test_frames_are_taken_evenly():
    assert sample(10, 5) == [0, 2, 4, 6, 8]
    assert sample(150, 4) == [0, 37, 75, 112]
    assert sample(3, 5) == [0, 1, 2]
    assert sample(5, 5) == [0, 1, 2, 3, 4]


def test_each_frame_is_a_tile():
    video = np.full((9, 20, 30, 3), 255, np.uint8)
    assert tiles(video, RECIPE).shape == (3, 3, 14, 28)
    assert (tiles(video, RECIPE) == 1).all()


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path):
    for index in (9, 10, 100, 2):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"frame {index}.png")
    (tmp_path / ".hidden.png").write_text("no picture")
    assert [np.asarray(frame)[0, 0, 0] for frame in frames(tmp_path, 8)] == [2, 9, 10, 100]


def test_a_film_is_decoded(tmp_path: Path):
    taken = frames(write_film(tmp_path / "film.mp4"), 4)
    assert [frame.size for frame in taken] == [(160, 96)] * 4
    assert len({frame.tobytes() for frame in taken}) == 4


def test_what_is_no_video_is_refused_by_name(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "still.png")
    for path, said in (
        (tmp_path / "none.mp4", "no video"),
        (tmp_path / "text.mp4", "cannot be read"),
        (tmp_path / "empty", "no pictures in it"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            frames(path, 4)
        assert str(path) in str(caught.value)
    for value in (np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3)), 5, None):
        with pytest.raises(InputError):
            frames(value, 4)


def test_frames_that_are_too_large_are_refused(tmp_path: Path):
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "1.png")
    for video, size in (
        (np.zeros((2, 40, 40, 3), np.uint8), "40 x 40"), (folder, "40 x 40"),
        (write_film(tmp_path / "film.mp4"), "160 x 96"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{size} pixels; the limit max_pixels is 1599"):
            frames(video, 4, max_pixels=1599)


def test_files_need_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_text("")
    with pytest.raises(InputError, match=r"pip install 'onnx-vlm\[video\]'"):
        frames(tmp_path / "film.mp4", 4)
