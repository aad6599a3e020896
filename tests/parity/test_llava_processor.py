"""LLaVA 1.5 with the processor settings that it publishes: pixels, prompts, and the settings that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.families import registry
from onnx_vlm.export.tracing.trace import fake_weights
from onnx_vlm.graphs import CheckpointError, InputError, contract
from onnx_vlm.graphs.manifest import Crop
from onnx_vlm.runtime.images.tiles import tiles as tiles_of_image
from onnx_vlm.runtime.text.prompt import Prompts
from PIL import Image
from published_processors import SCALED, assert_same_pixels, noise
from random_models import llava
from transformers import AutoProcessor

#: preprocessor_config.json and processor_config.json of llava-hf/llava-1.5-7b-hf.
IMAGES = SCALED | {
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "LlavaProcessor",
    "size": {"shortest_edge": 336},
    "do_center_crop": True,
    "crop_size": {"height": 336, "width": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
PROMPTS = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": 14,
    "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}
SIZES = [(336, 336), (640, 480), (480, 641), (337, 336), (335, 1000), (1001, 37), (1, 7), (90, 89), (3000, 21)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = llava(tmp_path_factory.mktemp("llava") / "checkpoint", seed=0, image_size=336, positions=4096)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    (folder / "processor_config.json").write_text(json.dumps(PROMPTS))
    return folder


def test_pixels(folder: Path):
    recipe = registry.find("llava").recipe(Checkpoint(folder)).image
    assert isinstance(recipe, Crop)
    assert (recipe.shortest_edge, recipe.height, recipe.width) == (336, 336, 336)
    source = AutoProcessor.from_pretrained(folder).image_processor
    for size in SIZES:
        theirs = np.asarray(source(noise(*size), return_tensors="np")["pixel_values"])
        assert_same_pixels(tiles_of_image(noise(*size), recipe), theirs, recipe)


def test_a_crop_of_less_than_the_shorter_side(folder: Path):
    source = AutoProcessor.from_pretrained(folder).image_processor
    source.size, source.crop_size = {"shortest_edge": 61}, {"height": 28, "width": 43}
    recipe = Crop(61, 28, 43, registry.find("llava").recipe(Checkpoint(folder)).image.pixels)
    for size in SIZES:
        theirs = np.asarray(source(noise(*size), return_tensors="np")["pixel_values"])
        assert_same_pixels(tiles_of_image(noise(*size), recipe), theirs, recipe)


def test_an_image_that_is_too_narrow_is_refused(folder: Path):
    recipe = registry.find("llava").recipe(Checkpoint(folder)).image
    with pytest.raises(InputError, match="too long and narrow; crop it first"):
        tiles_of_image(Image.new("RGB", (1, 2000)), recipe)


def test_prompts(folder: Path):
    source, recipe = AutoProcessor.from_pretrained(folder), registry.find("llava").recipe(Checkpoint(folder))
    with fake_weights():
        parts = registry.find("llava").build(Checkpoint(folder))
    _, count, _ = parts.graphs[contract.PROJECTOR].outputs[0].shape
    assert count == 576
    prompts, picture = Prompts(folder, recipe.prompt, count), noise(80, 60)
    tiles = tiles_of_image(picture, recipe.image)
    for text in ("What is it?", "", " two  spaces ", "naïve 日本", "</s> a\n\nb"):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        theirs = source.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert prompts.encode(text, [tiles]).ids.tolist() == theirs["input_ids"][0]


def test_a_start_that_the_template_writes_is_not_doubled(folder: Path):
    template = (folder / contract.CHAT_TEMPLATE).read_text()
    recipe, source = registry.find("llava").recipe(Checkpoint(folder)), AutoProcessor.from_pretrained(folder)
    try:
        (folder / contract.CHAT_TEMPLATE).write_text("{{ bos_token }}" + template)
        ours = Prompts(folder, recipe.prompt, 576).encode("Hello", []).ids.tolist()
        content = [{"type": "text", "text": "Hello"}]
        theirs = source.apply_chat_template(
            [{"role": "user", "content": content}],
            "{{ bos_token }}" + template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
    finally:
        (folder / contract.CHAT_TEMPLATE).write_text(template)
    assert ours == theirs["input_ids"][0]
    assert ours.count(source.tokenizer.bos_token_id) == 1


def _read(folder: Path) -> None:
    family, checkpoint = registry.find("llava"), Checkpoint(folder)
    family.recipe(checkpoint)
    with fake_weights():
        family.build(checkpoint)


@pytest.mark.parametrize(
    ("file", "changed", "problem"),
    [
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop is False; give true"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad is True; give false"),
        ("preprocessor_config.json", {"size": {"longest_edge": 336}}, "size is .*; give a shortest_edge"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 300}}, "crop_size is .* of at most 300"),
        ("preprocessor_config.json", {"size": {"height": 336, "width": 400}}, "crop_size is .* 336 and 400"),
        ("preprocessor_config.json", {"size": 400, "crop_size": 224}, "pictures of 224 x 224, config.json has .* 336"),
        ("processor_config.json", {"num_additional_image_tokens": 0}, "576 features, but 575 placeholders"),
        ("processor_config.json", {"image_token": "<picture>"}, "has <picture> as None"),
        ("config.json", {"vision_feature_layer": -9}, r"vision_feature_layer is \[-9\], the tower has 3 layers"),
        ("config.json", {"vision_config": {"model_type": "pixtral"}}, "'pixtral', supported are clip_vision_model"),
    ],
)
def test_settings_that_are_refused(folder: Path, file: str, changed: dict[str, Any], problem: str):
    kept = (folder / file).read_text()
    try:
        (folder / file).write_text(json.dumps(json.loads(kept) | changed))
        with pytest.raises(CheckpointError, match=problem):
            _read(folder)
    finally:
        (folder / file).write_text(kept)
