"""Frames of videos; what they become is compared with transformers in `test_processors.py`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import write_film
from onnx_vlm.graphs.manifest import PixelScaling, Resize, Video
from onnx_vlm.runtime import InputError, Limits
from onnx_vlm.runtime.images import video as videos
from onnx_vlm.runtime.images.video import sample, sample_in_time, tiles
from PIL import Image

RECIPE = Video(3, Resize(14, 28, PixelScaling("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))))


def frames(video: videos.VideoInput, count: int, limits: Limits | None = None) -> list[Image.Image]:
    """At most `count` frames, taken evenly."""
    return videos.frames(video, Video(count, RECIPE.tile), limits).frames


def test_frames_are_taken_evenly():
    assert sample(10, 5) == [0, 2, 4, 6, 8]
    assert sample(150, 4) == [0, 37, 75, 112]
    assert sample(3, 5) == [0, 1, 2]
    assert sample(5, 5) == [0, 1, 2, 3, 4]


def test_each_frame_is_a_tile():
    taken = tiles(videos.frames(np.full((9, 20, 30, 3), 255, np.uint8), RECIPE), RECIPE)
    assert taken.shape == (3, 3, 14, 28)
    assert (taken == 1).all()


def test_frames_are_taken_in_time():
    recipe = Video(4, RECIPE.tile, rate=1.0, margin=1.0)
    assert sample_in_time(10, 25.0, recipe) == [0]
    assert sample_in_time(75, 25.0, recipe) == [0, 37, 74]
    assert sample_in_time(150, 25.0, recipe) == [0, 49, 99, 149]  # six seconds: no more than rate * frames, and margins
    assert sample_in_time(175, 25.0, recipe) == [25, 66, 108, 150]


def test_times_of_frames(tmp_path: Path):
    still = videos.frames(np.zeros((49, 4, 4, 3), np.uint8), Video(3, RECIPE.tile, rate=1.0))
    assert (still.seconds, still.duration) == ([0, 0, 1], 2)  # 0, 16 and 32 of 49 frames at 24 a second


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path):
    for index in (9, 10, 100, 2):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"frame {index}.png")
    (tmp_path / ".hidden.png").write_text("no image")
    assert [np.asarray(frame)[0, 0, 0] for frame in frames(tmp_path, 8)] == [2, 9, 10, 100]


def test_a_film_is_decoded(tmp_path: Path):
    film = write_film(tmp_path / "film.mp4")
    taken = frames(film, 4)
    assert [frame.size for frame in taken] == [(160, 96)] * 4
    assert len({frame.tobytes() for frame in taken}) == 4
    assert [frame.tobytes() for frame in frames(film.read_bytes(), 4)] == [frame.tobytes() for frame in taken]
    with pytest.raises(InputError, match="the 5 bytes given: the video cannot be read"):
        frames(b"bytes", 4)


def test_what_is_no_video_is_refused_by_name(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "still.png")
    for path, said in (
        (tmp_path / "none.mp4", "no video"),
        (tmp_path / "text.mp4", "cannot be read"),
        (tmp_path / "empty", "no images in it"),
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
        (np.zeros((2, 40, 40, 3), np.uint8), "40 x 40"),
        (folder, "40 x 40"),
        (write_film(tmp_path / "film.mp4"), "160 x 96"),
    ):
        with pytest.raises(InputError, match=f"{size} pixels; the limit max_pixels is 1599"):
            frames(video, 4, Limits(max_pixels=1599))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("clip.mp4", "ffconcat version 1.0\nfile 'film.mp4'\n"),
        ("clip.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfilm.ts\n#EXT-X-ENDLIST\n"),
        ("clip.txt", "some words\n" * 50),
        ("clip.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
    ],
)
def test_text_and_lists_of_other_files_are_no_videos(name: str, text: str, tmp_path: Path):
    film = write_film(tmp_path / "film.mp4")
    film.with_suffix(".ts").write_bytes(write_film(tmp_path / "other.ts").read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: the video cannot be read: .*containers that are read are mov,mp4"):
        frames(tmp_path / name, 4)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts"])
def test_containers_that_are_read(suffix: str, tmp_path: Path):
    assert len(frames(write_film(tmp_path / f"film.{suffix}", frames=8), 4)) == 4


def test_an_animation_is_a_video(tmp_path: Path):
    first, *others = (Image.new("RGB", (32, 32), (level, 0, 0)) for level in (0, 100, 200))
    first.save(tmp_path / "film.gif", save_all=True, append_images=others)
    assert len(frames(tmp_path / "film.gif", 4)) == 3


@pytest.mark.parametrize("place", ["start", "end"])
def test_a_film_that_is_cut_off_is_refused(place: str, tmp_path: Path):
    """With its index at the start FFmpeg would give the frames that are left, and say nothing."""
    options = {"movflags": "faststart"} if place == "start" else {}
    path = write_film(tmp_path / "film.mp4", options=options)
    data = path.read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == (place == "start")
    for size in (len(data) - 1, len(data) * 2 // 3):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=f"cut off: {size} bytes, and its box '(mdat|moov)' ends at"):
            frames(path, 4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])  # whose frames are told, and whose are to be counted
def test_films_that_are_too_long_are_refused(suffix: str, tmp_path: Path):
    path = write_film(tmp_path / f"film.{suffix}", frames=8)
    assert len(frames(path, 4, Limits(max_video_frames=8))) == 4
    with pytest.raises(InputError, match="more than 7 frames, which is the limit max_video_frames"):
        frames(path, 4, Limits(max_video_frames=7))


def test_damaged_films_are_frames_or_errors_that_say_so(tmp_path: Path):
    data, draw = write_film(tmp_path / "film.mp4", frames=4).read_bytes(), random.Random(0)
    path = tmp_path / "damaged.mp4"
    for _ in range(60):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 20)):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        path.write_bytes(mutated)
        try:
            assert frames(path, 4, Limits(max_pixels=100_000, max_video_frames=100))
        except InputError:
            continue


@pytest.mark.parametrize(
    ("path", "said"),
    [("", "the path of the video is empty"), ("a" * 300, "File name too long"), ("rtsp://host/x", "URLs are not read")],
)
def test_paths_that_lead_nowhere(path: str, said: str):
    with pytest.raises(InputError, match=said):
        frames(path, 4)


@pytest.mark.parametrize("call", ["pathlib.Path.exists", "pathlib.Path.iterdir", "pathlib.Path.open"])
def test_what_may_not_be_read(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As for a user without permission; root has every one."""
    path = tmp_path if "iterdir" in call else write_film(tmp_path / "film.mp4")

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(call, fail)
    with pytest.raises(InputError, match=r"the video cannot be (reached|read): Permission denied"):
        frames(path, 4)


def test_files_need_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_text("")
    with pytest.raises(InputError, match=r"pip install 'onnx-vlm\[video\]'"):
        frames(tmp_path / "film.mp4", 4)
