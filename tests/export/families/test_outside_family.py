"""A family registered from outside the package, exported and run end to end against transformers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import onnx_vlm.export.families as kit
import outside_family
import pytest
import torch
from helpers import CHECKPOINTS, REPOSITORY
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.export.families import registry
from onnx_vlm.graphs import CheckpointError
from onnx_vlm.runtime import load
from onnx_vlm.runtime.images import tiles
from onnx_vlm.runtime.inputs import Request
from PIL import Image
from random_models import telling_weights
from source import TOLERANCE, Source, ask, relative_error
from transformers import AutoImageProcessor, AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "paligemma2")
    image_processor = AutoImageProcessor.from_pretrained(CHECKPOINTS / "paligemma2")
    image_processor.size = {"height": 28, "width": 28}
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 67,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 1536,
            "hidden_size": 32,
            "intermediate_size": 83,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    telling_weights(model)
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


class LlavaSource(Source):
    """Asked as `outside_family` asks."""

    batches = False

    def __init__(self, folder: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder)

    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        text = "<bos>" + "<image>" * 4 * len(request.images) + f"USER: {request.prompt}\nASSISTANT:"
        inputs = dict(self.tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        if request.images:
            inputs |= self.image_processor(request.images, return_tensors="pt")
        return inputs


def test_a_family_from_outside(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge, threads: int
):
    monkeypatch.setattr(registry, "_MODULES", dict(registry._MODULES))  # registered for this test alone
    with pytest.raises(CheckpointError, match="'llava' is not supported"):
        export_model(checkpoint, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)  # where the documentation's example finds the checkpoint
    checkpoint.rename("llava-checkpoint")
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "add-a-family.md").read_text(), re.M | re.S
    )
    exec(example, {})
    checkpoint = tmp_path / "llava-checkpoint"
    vlm = load(tmp_path / "bundle", threads=threads)
    source = LlavaSource(checkpoint)
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(2)]
    requests = [
        ask("What is it?", pictures[:1]),
        ask("Why is there a red circle in it?", pictures[1:]),
        ask("Hello"),
    ]
    answers = vlm.generate([one.prompt for one in requests], [one.images for one in requests], max_new_tokens=24)
    for request, answer, truth in zip(requests, answers, source.answer(requests, 24)):
        judge.tokens(source, answer.token_ids, truth, request.prompt)
    pixels = source.inputs(requests[0])["pixel_values"]
    (theirs,) = source.model.get_image_features(pixel_values=pixels).pooler_output
    (ours,) = vlm.pipeline.engine.encode_images(tiles.tiles(pictures[0], vlm.manifest.image))
    assert relative_error(ours, theirs.detach().numpy()) < TOLERANCE


def test_the_kit_is_documented_and_enough():
    assert sorted(kit.__all__) == kit.__all__
    for name in kit.__all__:
        assert f"`{name}`" in kit.__doc__, name
        assert getattr(kit, name).__doc__, name
    modules = [
        node.module
        for node in ast.walk(ast.parse(Path(outside_family.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("onnx_vlm")
    ]
    assert modules == ["onnx_vlm.export.families"]
