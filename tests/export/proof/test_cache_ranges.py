"""A KV cache of int8: what it costs, that its proof notices a wrong scale, and where it is refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import shapes
from helpers import CHECKPOINTS, run_command
from onnx_vlm.export import export_model
from onnx_vlm.graphs import BundleError, ExportError, contract, manifest
from onnx_vlm.graphs.precision import CACHES
from onnx_vlm.graphs.transforms.quantize_cache import scale_name
from onnx_vlm.runtime import load
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.verify import verify

SEEDS = range(shapes.HELD_OUT, shapes.HELD_OUT + 12)


@pytest.mark.parametrize("name", ["paligemma2", "perception_lm"])
def test_the_proof_holds_and_the_loss_is_small(bundles: Callable[..., Path], name: str):
    bundle = bundles(name, kv_cache="int8")
    checks = {check.name: check for check in verify(bundle, LoadOptions(threads=1))}
    assert all(check.passed for check in checks.values()), checks
    assert checks["prefill logits"].tolerance == CACHES["int8"].tolerance
    loss = manifest.load(bundle).proof.loss
    assert 0 < loss.logits < CACHES["int8"].loss_warned
    assert loss.equal_tokens == loss.tokens
    assert "rounded to int8" in run_command("inspect", bundle).stdout


def test_answers_are_right_and_the_cache_is_a_quarter(bundles: Callable[..., Path]):
    vlm = load(bundles("perception_lm", kv_cache="int8"), threads=1)
    floats = load(bundles("perception_lm"), threads=1)
    assert 4 * vlm.pipeline.engine.kv_bytes(3, 100) == floats.pipeline.engine.kv_bytes(3, 100)
    assert 4 * vlm.pipeline.engine.saved_bytes(50, 100) == floats.pipeline.engine.saved_bytes(50, 100)
    questions = [(scene, question) for scene in map(shapes.scene, SEEDS) for question in shapes.chat_questions(scene)]
    right = {}
    for kind, one in (("int8", vlm), ("float", floats)):
        pictures = [shapes.draw(scene) for scene, _ in questions]
        answers = one.generate([question.prompt for _, question in questions], pictures)
        right[kind] = sum(answer.text == question.answer for answer, (_, question) in zip(answers, questions))
    assert right["int8"] >= right["float"] - 1 > 0.8 * len(questions), right


def test_a_wrong_scale_is_noticed(bundles: Callable[..., Path], tmp_path: Path):
    """Of the values of one layer: an eighth, so that most are cut off."""
    bundle = Path(shutil.copytree(bundles("perception_lm", kv_cache="int8"), tmp_path / "bundle"))
    path, made = bundle / "decoder.onnx", manifest.load(bundle)
    model = ir.load(path)
    scale = model.graph.initializers[scale_name(contract.past_name(1, "value"))]
    scale.const_value = ir.tensor(scale.const_value.numpy() / 8, name=scale.name)
    ir.save(model, path)
    changed = {path.name: manifest.File(path.stat().st_size, manifest.sha256(path))}
    dataclasses.replace(made, files=made.files | changed).save(bundle)
    assert not all(check.passed for check in verify(bundle, LoadOptions(threads=1)))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("perception_lm", {"kv_cache": "int4"}, "kv_cache of 'int4' is not supported; supported: float, int8"),
        ("perception_lm", {"target": "portable"}, "choose the target onnxruntime"),
        ("perception_lm", {"precision": "fp16"}, "choose a precision of fp32, bf16, int8, int4"),
        ("colpali", {}, "keeps no KV cache: leave kv_cache out"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path: Path, name: str, options: dict[str, Any], said: str):
    with pytest.raises(ExportError, match=said):
        export_model(CHECKPOINTS / name, tmp_path / "bundle", **{"kv_cache": "int8", **options})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cache", "told"), [("int8", {}), ("int8", {"kv_cache": "int4"}), ("float", {"kv_cache": "int8"})]
)
def test_a_manifest_at_odds_with_its_cache_is_refused(
    bundles: Callable[..., Path], tmp_path: Path, cache: str, told: dict[str, str]
):
    bundle = Path(shutil.copytree(bundles("perception_lm", kv_cache=cache), tmp_path / "bundle"))
    made = manifest.load(bundle)
    parts = {part: name for part, name in made.precision.items() if part != contract.KV_CACHE}
    dataclasses.replace(made, precision=parts | told).save(bundle)
    with pytest.raises(BundleError, match=r"precision\.kv_cache: .*the decoder's cache is of"):
        manifest.load(bundle)
