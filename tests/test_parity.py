"""The exported trained checkpoint against transformers: every stage, every token."""

from __future__ import annotations

from pathlib import Path

import pytest
import shapes
from helpers import CHECKPOINT
from onnx_vlm.runtime import VLM, load
from PIL import Image
from source import TOLERANCE, Source, assert_same_tokens, stage_errors

PHOTOGRAPHS = (
    "000000039769.png", "astronaut.png", "australia.jpg", "cars.jpg", "cat.png", "chelsea.png", "coffee.png",
    "corgi.jpg", "cow_in_beach.jpg", "dog.png", "rocket.jpg", "snowman.png", "two_dogs.jpg",
)  # fmt: skip


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle)


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(CHECKPOINT)


def test_held_out_pictures(vlm: VLM, source: Source):
    """60 pictures, all six questions about each in one ragged batch."""
    for seed in range(shapes.HELD_OUT + 500, shapes.HELD_OUT + 560):
        scene = shapes.scene(seed)
        prompts = [question.prompt for question in shapes.questions(scene)]
        pictures = [shapes.draw(scene)] * len(prompts)
        ours = vlm.generate(prompts, pictures, max_new_tokens=48)
        for prompt, answer, truth in zip(prompts, ours, source.answer(prompts, pictures, 48)):
            assert_same_tokens(answer.token_ids, truth, f"picture {seed}, {prompt!r}")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs(vlm: VLM, source: Source, assets: Path, name: str):
    picture = Image.open(assets / "images" / name)
    prompts = ["caption", "detect red circle", "how many squares"]
    ours = vlm.generate(prompts, [picture] * 3, max_new_tokens=32)
    for prompt, answer, truth in zip(prompts, ours, source.answer(prompts, [picture] * 3, 32)):
        assert_same_tokens(answer.token_ids, truth, f"{name}, {prompt!r}")
    errors = stage_errors(vlm, source, "caption", picture, 16)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("seed", range(shapes.HELD_OUT, shapes.HELD_OUT + 5))
def test_stages(vlm: VLM, source: Source, seed: int):
    scene = shapes.scene(seed)
    errors = stage_errors(vlm, source, f"detect {scene.things[0].name}", shapes.draw(scene), 24)
    assert set(errors) == {"pixel_values", "vision_features", "image_embeds", "prefill logits", "step logits"}
    assert max(errors.values()) < TOLERANCE, errors
