"""The command `generate`: what it prints, draws and refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapes
from helpers import run_command
from onnx_vlm.runtime import VLMError, load
from onnx_vlm.runtime.cli import app
from PIL import Image

THING = shapes.scene(shapes.HELD_OUT).things[0].name


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_answer_boxes_and_times_are_printed(bundle: Path, image: Path):
    done = run_command("generate", bundle, f"detect {THING}", "--image", image)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f" {THING}\n")
    assert "xmin" in done.stderr
    assert "prefill" in done.stderr


def test_a_stream_is_what_is_printed_whole(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]):
    command = ("generate", bundle, "caption", "--image", image, "--max-new-tokens", 4, "--stop", "zzz", "--threads", 1)
    run(*command, "--stream")
    streamed = capsys.readouterr().out
    run(*command, "--no-stream")
    assert streamed == capsys.readouterr().out != "\n"


def test_several_answers_are_printed_best_first(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    answer = load(bundle, threads=1).generate("caption", image, **options)
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    run("generate", bundle, "caption", "--image", image, "--threads", 1, "--stream", *flags)
    assert capsys.readouterr().out.splitlines() == [answer.text, answer.alternatives[0].text]


def test_json_is_printed_and_a_drawing_written(bundle: Path, image: Path, tmp_path: Path):
    drawing = tmp_path / "boxes.png"
    done = run_command(
        "generate",
        bundle,
        f"detect {THING}",
        "--image",
        image,
        "--json",
        "--draw",
        drawing,
        "--threads",
        1,
        "--embedding-folder",
        tmp_path / "embeddings",
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "embeddings").glob("*.npy"))) == 1
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == load(bundle, threads=1).generate(f"detect {THING}", image).token_ids
    assert answer["boxes"][0]["label"] == THING
    assert Image.open(drawing).size == (320, 240)
    assert (np.asarray(Image.open(drawing)) != np.asarray(Image.open(image))).any()


def test_bad_input_is_refused_with_status_2(bundle: Path, image: Path, tmp_path: Path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    drawing = tmp_path / "drawing.png"
    incomplete = tmp_path / "incomplete"
    shutil.copytree(bundle, incomplete)
    (incomplete / "projector.onnx.data").unlink()
    for arguments, said in (
        ((bundle, "caption", "--image", tmp_path / "none.png", "--draw", drawing), "none.png"),
        ((bundle, "caption", "--image", text, "--draw", drawing), "text.png"),
        ((bundle, "caption"), "at least one"),
        ((bundle, "caption " * 600, "--image", image, "--draw", drawing), "positions"),
        ((bundle, "caption", "--draw", drawing), "--image"),
        ((bundle, "caption", "--image", image, "--max-new-tokens", "0"), "max_new_tokens is 0"),
        ((bundle, "caption", "--image", image, "--threads", "0"), "threads is 0"),
        ((bundle, "caption", "--image", image, "--bboxes", "{}"), "give a list"),
        ((bundle, "caption", "--image", image, "--bboxes", "[" * 100_000), "not JSON"),
        ((tmp_path, "caption", "--image", image), "no manifest.json"),
        ((incomplete, "caption", "--image", image), "projector.onnx.data"),
        ((bundle, "caption", "--picture", image), "--picture"),
        ((bundle,), "PROMPT"),
    ):
        done = run_command("generate", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        assert said in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr
        assert not drawing.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((f"drawing.{suffix}", "image file") for suffix in ("xyz", "psd", "mpg", "fits", "h5", "xbm", "msp")),
        ("no/drawing.png", "no folder"),
        ("folder.png", "is no file"),
        ("file.txt/drawing.png", "no folder"),
        (f"{'x' * 300}.png", "too long"),
        ("/proc/drawing.png", "cannot be written"),
    ],
)
def test_a_drawing_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    image: Path, tmp_path: Path, name: str, said: str
):
    if name.startswith("/proc") and not Path("/proc/self").exists():
        name = "/dev/null/drawing.png"
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VLMError, match=said) as refused:
        run("generate", tmp_path / "no-bundle", "caption", "--image", image, "--draw", tmp_path / name)
    assert refused.value.exit_status == 2
    assert sorted(tmp_path.iterdir()) == before


def test_a_drawing_that_is_there_is_untouched_if_nothing_is_drawn(image: Path, tmp_path: Path):
    drawing = tmp_path / "drawing.png"
    drawing.write_bytes(b"earlier")
    with pytest.raises(VLMError, match="no manifest"):
        run("generate", tmp_path, "caption", "--image", image, "--draw", drawing)
    assert drawing.read_bytes() == b"earlier"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("PSD")])
def test_a_failed_drawing_does_not_cost_the_answer(
    bundle: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
):
    original = Image.Image.save

    def save(self, target, *arguments, **options):
        if isinstance(target, io.BytesIO):
            return original(self, target, *arguments, **options)
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    drawing = tmp_path / "drawing.png"
    with pytest.raises(VLMError, match="the answer is complete, its drawing is not") as failed:
        run("generate", bundle, f"detect {THING}", "--image", image, "--threads", 1, "--json", "--draw", drawing)
    assert failed.value.exit_status == 1
    assert json.loads(capsys.readouterr().out)["boxes"][0]["label"] == THING
    assert os.listdir(tmp_path) == [image.name]
