"""How often the trained checkpoints are right on pictures and clips they were not trained on, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from held_out import CHECKPOINTS, ask, shares
from helpers import run_command
from onnx_vlm.runtime import load
from PIL import Image

PICTURES = 200
#: Shares of right answers where a checkpoint has not learnt a task as well as others.
LEAST = {("emoji", "caption"): 0.8, ("emoji", "detect two"): 0.9}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_held_out_pictures_are_answered(bundles: Callable[..., Path], name: str, figure: Callable[[str], None]):
    """At least 95 % right of nearly all tasks; a box is right if it covers the true one by half or more (IoU)."""
    found = shares(ask(name, load(bundles(name), threads=1), PICTURES))
    figure(f"{name}: " + "  ".join(f"{task} {share:.1%}" for task, share in found.items()))
    assert all(share >= LEAST.get((name, task), 0.95) for task, share in found.items())


def test_a_conversation_goes_on(bundles: Callable[..., Path]):
    """Several turns about one picture, each answered from the turns before."""
    vlm = load(bundles("perception_lm"), threads=1)
    scene = shapes.scene(shapes.HELD_OUT)
    messages: list[dict[str, object]] = []
    for index, question in enumerate(shapes.chat_questions(scene)[:3]):
        content = [{"type": "text", "text": question.prompt}]
        if index == 0:
            content.insert(0, {"type": "image", "image": shapes.draw(scene)})
        messages.append({"role": "user", "content": content})
        answer = vlm.generate(messages)
        assert answer.text == question.answer
        messages.append({"role": "assistant", "content": answer.text})


def test_a_grounded_caption_has_entities_in_pixels(bundles: Callable[..., Path]):
    vlm = load(bundles("kosmos2"), threads=1)
    scene = shapes.scene(shapes.HELD_OUT)
    thing, kinds = scene.things[0], {thing.name for thing in scene.things}
    answer = vlm.generate("<grounding> An image of", shapes.draw(scene, 700, 500))
    assert answer.caption.startswith("An image of a")
    assert answer.caption.removeprefix("An image of").strip() == answer.text
    assert len(answer.entities) == len(kinds)
    assert all(answer.caption[one.start : one.end] == one.label for one in answer.entities)
    (found,) = (box for box in answer.boxes if box.label == f"a {thing.name}")
    edges = np.array((thing.left * 700, thing.top * 500, thing.right * 700, thing.bottom * 500)) / shapes.GRID
    assert np.allclose((found.xmin, found.ymin, found.xmax, found.ymax), edges, atol=60)


def test_the_command_prints_and_draws_phrases_with_their_boxes(bundles: Callable[..., Path], tmp_path: Path):
    scene = shapes.scene(shapes.HELD_OUT)
    shapes.draw(scene, 700, 500).save(tmp_path / "shapes.png")
    done = run_command(
        "generate",
        bundles("kosmos2"),
        "<grounding> An image of",
        "--image",
        tmp_path / "shapes.png",
        "--json",
        "--constrain",
        "boxes",
        "--draw",
        tmp_path / "drawn.png",
        "--threads",
        "1",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {one["label"] for one in answer["entities"]} == {f"a {thing.name}" for thing in scene.things}
    assert all(answer["caption"][one["start"] : one["end"]] == one["label"] for one in answer["entities"])
    assert [box for one in answer["entities"] for box in one["boxes"]] == answer["boxes"]
    before, drawn = (np.asarray(Image.open(tmp_path / name)) for name in ("shapes.png", "drawn.png"))
    for box in answer["boxes"]:
        middle, left = round((box["ymin"] + box["ymax"]) / 2), round(box["xmin"])
        assert (drawn[middle, max(0, left - 4) : left + 1] != before[middle, max(0, left - 4) : left + 1]).any()


def test_boxes_given_for_a_phrase_say_what_is_meant(bundles: Callable[..., Path]):
    vlm = load(bundles("kosmos2"), threads=1)
    scenes = map(shapes.scene, range(shapes.HELD_OUT, shapes.HELD_OUT + 50))
    scene = next(scene for scene in scenes if len({thing.name for thing in scene.things}) == 2)
    for thing in scene.things:
        box = tuple(edge / shapes.GRID for edge in (thing.left, thing.top, thing.right, thing.bottom))
        answer = vlm.generate("<grounding><phrase> it</phrase> is", shapes.draw(scene), bboxes=[box])
        assert answer.caption == f"it is a {thing.name}"
        assert answer.entities[0].label == "it"
