"""LoRA adapters merged while a checkpoint is exported, against PEFT's own merging."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which peft imports)
import peft
import pytest
import shapes
import torch
from helpers import CHECKPOINTS, run_command
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.graphs import CheckpointError, manifest
from onnx_vlm.runtime import load
from source import TOLERANCE, ask, open_source, stage_errors

NAME = "paligemma2"
TARGETS = r".*(language_model.*\.(q_proj|down_proj)|vision_tower.*\.(out_proj|fc1)|multi_modal_projector\.linear)"
PATTERNS = {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 5}, "alpha_pattern": {"down_proj": 20}}


def adapted(folder: Path, **options: object) -> torch.nn.Module:
    """Write a random adapter for the trained checkpoint; the source model with it merged by PEFT."""
    torch.manual_seed(0)
    source = open_source(CHECKPOINTS / NAME)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | options)
    model = peft.get_peft_model(source.model, config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
        elif "modules_to_save" in name:
            weight.data += torch.randn_like(weight) * 0.02
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.mark.parametrize(
    "options",
    [
        PATTERNS,
        {"use_rslora": True, "lora_alpha": 3},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"target_modules": ["patch_embedding", "gate_proj"], "modules_to_save": ["multi_modal_projector"]},
    ],
    ids=["patterns", "rslora", "embeddings", "convolution and whole modules"],
)
def test_a_merged_adapter_is_what_peft_merges(tmp_path: Path, options: dict[str, object], judge: Judge):
    source = open_source(CHECKPOINTS / NAME)
    source.model = adapted(tmp_path / "adapter", **options).eval()
    bundle = export_model(CHECKPOINTS / NAME, tmp_path / "bundle", adapter=tmp_path / "adapter", prove=False)
    vlm = load(bundle, threads=1)
    plain = open_source(CHECKPOINTS / NAME)
    assert vlm.manifest.source["adapter"] == "adapter"
    scene = shapes.scene(shapes.HELD_OUT)
    request = ask("detect red circle", [shapes.draw(scene)])
    errors = stage_errors(vlm, source, request, 16)
    assert max(errors.values()) < TOLERANCE, errors
    (truth,) = source.answer([request], 16)
    judge.tokens(source, vlm.generate(request.prompt, request.images, max_new_tokens=16).token_ids, truth, "adapter")
    (before,) = plain.answer([request], 16)
    assert np.abs(truth.logits[0] - before.logits[0]).max() > 0.1, "the adapter changes something"


def change(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    adapted(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "DoRA cannot be merged here"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' cannot be merged here"),
        ({"lora_bias": True}, "LoRA with biases"),
    ],
)
def test_other_adapters_are_refused_by_name(adapter: Path, tmp_path: Path, settings: dict[str, object], said: str):
    before = (adapter / "adapter_config.json").read_text()
    change(adapter, **settings)
    try:
        done = run_command("export", CHECKPOINTS / NAME, tmp_path / "bundle", "--adapter", adapter)
    finally:
        (adapter / "adapter_config.json").write_text(before)
    message = done.stderr.replace("\n", " ")
    assert (done.returncode, said in message, "merge_and_unload" in message) == (2, True, True), message
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_is_refused_with_its_tensors(adapter: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_A\.weight: the model has no such weight"):
        export_model(CHECKPOINTS / "kosmos2", tmp_path / "bundle", adapter=adapter)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_an_adapter_or_with_a_pickle_is_refused(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        export_model(CHECKPOINTS / NAME, tmp_path / "bundle", adapter=tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a pickle, which may run code"):
        export_model(CHECKPOINTS / NAME, tmp_path / "bundle", adapter=tmp_path / "adapter")


def test_verify_compares_with_the_live_model_and_its_adapter(adapter: Path, tmp_path: Path):
    bundle = export_model(CHECKPOINTS / NAME, tmp_path / "bundle", adapter=adapter, prove=False)
    assert manifest.load(bundle).proof is None
    live = ("verify", bundle, "--checkpoint", CHECKPOINTS / NAME)
    assert run_command(*live, "--adapter", adapter).returncode == 0
    assert run_command("verify", bundle, "--adapter", adapter).returncode == 2, "it goes with --checkpoint"
    done = run_command(*live, "--json")
    assert (done.returncode, json.loads(done.stdout)["passed"]) == (1, False)
