"""Answers of the trained checkpoint, through Python and the command, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapes
from helpers import run_command
from onnx_vlm.runtime import VLM, InputError, ProviderError, load
from PIL import Image


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT), 320, 240).save(path)
    return path


def test_boxes_are_in_pixels_of_the_given_picture(vlm: VLM):
    scene = shapes.scene(shapes.HELD_OUT)
    thing = scene.things[0]
    for width, height in ((320, 240), (1000, 700)):
        answer = vlm.generate(f"detect {thing.name}", shapes.draw(scene, width, height))
        box = answer.boxes[0]
        assert box.label == thing.name
        edges = (thing.left * width, thing.top * height, thing.right * width, thing.bottom * height)
        assert np.allclose((box.xmin, box.ymin, box.xmax, box.ymax), np.array(edges) / shapes.GRID, atol=width / 14)


def test_prompts_together_are_answered_as_one_by_one(vlm: VLM):
    scenes = [shapes.scene(shapes.HELD_OUT + index) for index in range(4)]
    prompts = ["caption", f"detect {scenes[1].things[0].name}", "how many circles", "detect red circle ; blue square"]
    pictures = [shapes.draw(scene) for scene in scenes]
    together = vlm.generate(prompts, pictures)
    alone = [vlm.generate(prompt, picture) for prompt, picture in zip(prompts, pictures)]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert len({answer.prompt_tokens for answer in alone}) > 1, "the prompts differ in length"
    assert [answer.boxes for answer in together] == [answer.boxes for answer in alone]


def test_several_pictures_for_one_prompt(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    one, two = vlm.generate("caption", picture), vlm.generate("caption", [picture, picture])
    assert two.prompt_tokens - one.prompt_tokens == 16


def test_an_answer_says_how_it_ended(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    whole, cut = vlm.generate("caption", picture), vlm.generate("caption", picture, max_new_tokens=2)
    assert (whole.finish_reason, whole.token_ids[-1]) == ("stop", 1)
    assert (cut.finish_reason, cut.token_ids) == ("length", whole.token_ids[:2])
    assert whole.text.startswith(cut.text)
    assert set(whole.timings) == {"preprocess", "vision", "prefill", "decode", "tokens_per_second"}


def test_answers_do_not_depend_on_calls_before(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    first = vlm.generate("caption", picture)
    vlm.generate("how many squares", shapes.draw(shapes.scene(shapes.HELD_OUT + 1)))
    assert vlm.generate("caption", picture).token_ids == first.token_ids


def test_input_that_cannot_be_answered(vlm: VLM):
    picture = Image.new("RGB", (10, 10))
    room = vlm.manifest.generation.max_positions
    for prompt, images, options, said in (
        ([], [], {}, "empty"),
        ("caption", None, {}, "at least one"),
        ("caption", [], {}, "at least one"),
        (["a", "b"], [picture], {}, "2 prompts need 2 entries"),
        (["a", "b"], picture, {}, "2 prompts need 2 entries"),
        ("<image>caption", picture, {}, "<image>"),
        ("caption", picture, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("caption", picture, {"max_new_tokens": room}, f"{room} positions"),
        ("how many circles " * room, picture, {}, f"the model {room} positions"),
        ("caption", [picture] * 40, {}, f"{room} positions"),
    ):
        with pytest.raises(InputError, match=said):
            vlm.generate(prompt, images, **options)


def test_an_answer_may_fill_the_last_position(vlm: VLM):
    picture = Image.new("RGB", (10, 10))
    room = vlm.manifest.generation.max_positions - vlm.generate("caption", picture).prompt_tokens
    assert vlm.generate("caption", picture, max_new_tokens=room).token_ids
    with pytest.raises(InputError, match="positions"):
        vlm.generate("caption", picture, max_new_tokens=room + 1)


def test_an_unknown_provider_is_refused(bundle: Path):
    with pytest.raises(ProviderError, match="supported: auto, cpu"):
        load(bundle, provider="gpu")


def test_the_command_prints_answer_boxes_and_times(bundle: Path, picture: Path):
    thing = shapes.scene(shapes.HELD_OUT).things[0]
    done = run_command("generate", bundle, f"detect {thing.name}", "--image", picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f" {thing.name}\n")
    assert "xmin" in done.stderr
    assert "prefill" in done.stderr


def test_the_command_prints_json_and_draws(bundle: Path, picture: Path, vlm: VLM, tmp_path: Path):
    thing = shapes.scene(shapes.HELD_OUT).things[0]
    drawing = tmp_path / "boxes.png"
    done = run_command(
        "generate", bundle, f"detect {thing.name}", "--image", picture, "--json", "--draw", drawing, "--threads", 1
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == vlm.generate(f"detect {thing.name}", picture).token_ids
    assert answer["boxes"][0]["label"] == thing.name
    assert Image.open(drawing).size == (320, 240)
    assert (np.asarray(Image.open(drawing)) != np.asarray(Image.open(picture))).any()


def test_the_command_refuses_bad_input_with_status_2(bundle: Path, picture: Path, tmp_path: Path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    drawing = tmp_path / "drawing.png"
    incomplete = tmp_path / "incomplete"
    shutil.copytree(bundle, incomplete)
    (incomplete / "projector.onnx.data").unlink()
    for arguments, said in (
        ((bundle, "caption", "--image", tmp_path / "none.png", "--draw", drawing), "none.png"),
        ((bundle, "caption", "--image", text, "--draw", drawing), "not a picture"),
        ((bundle, "caption"), "at least one"),
        ((bundle, "caption " * 600, "--image", picture, "--draw", drawing), "positions"),
        ((bundle, "caption", "--image", picture, "--draw", tmp_path / "drawing.xyz"), "drawing.xyz"),
        ((bundle, "caption", "--image", picture, "--draw", tmp_path / "no" / "drawing.png"), "no folder"),
        ((bundle, "caption", "--draw", drawing), "--image"),
        ((bundle, "caption", "--image", picture, "--max-new-tokens", "0"), "max_new_tokens is 0"),
        ((bundle, "caption", "--image", picture, "--threads", "0"), "threads is 0"),
        ((tmp_path, "caption", "--image", picture), "no manifest.json"),
        ((incomplete, "caption", "--image", picture), "projector.onnx.data"),
        ((bundle, "caption", "--picture", picture), "--picture"),
        ((bundle,), "PROMPT"),
    ):
        done = run_command("generate", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        assert said in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr
        assert not drawing.exists()
