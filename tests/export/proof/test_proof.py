"""What a proof notices: weights that are lost, and what rounding the others costs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import random_models
from helpers import CHECKPOINTS, run_command
from onnx_vlm.export import export_model
from onnx_vlm.export.checkpoint import hub
from onnx_vlm.export.families import registry
from onnx_vlm.export.proof import proof, verdict
from onnx_vlm.graphs import ExportError, expansion, manifest
from onnx_vlm.graphs.precision import PRECISIONS
from onnx_vlm.runtime import stored_proof
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.verify import verify
from zeroed import quantised_weights, zeroed

ONE_THREAD = LoadOptions(threads=1)
#: Weights whose loss a comparison with the source model as it is does not tell from the loss of rounding to 4 bits.
HARD = {
    "perception_lm": [f"layers.{layer}.mlp.{part}_proj" for layer in (1, 2) for part in ("gate", "up", "down")],
    "kosmos2": [f"layers.1.self_attn.{part}" for part in ("q_proj", "k_proj", "out_proj")]
    + [f"layers.3.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")],
    "paligemma": [f"layers.{layer}.self_attn.{part}_proj" for layer in (2, 3) for part in ("q", "k")],
}


@pytest.mark.parametrize("name", HARD)
def test_a_weight_that_is_lost_is_noticed(bundles: Callable[..., Path], tmp_path: Path, name: str):
    bundle = Path(shutil.copytree(bundles(name, "int4"), tmp_path / "bundle"))
    assert all(check.passed for check in verify(bundle, ONE_THREAD))
    for part in HARD[name]:
        with zeroed(bundle, "decoder", f"causal_lm.model.{part}.weight.T"):
            assert not all(check.passed for check in verify(bundle, ONE_THREAD)), part


def test_all_quantised_weights_are_tried(bundles: Callable[..., Path]):
    names = {name for _, name in quantised_weights(bundles("perception_lm", "int4"))}
    assert {f"causal_lm.model.{part}.weight.T" for part in HARD["perception_lm"]} < names


def test_the_loss_is_kept_and_shown(bundles: Callable[..., Path]):
    bundle = bundles("paligemma2", "int4")
    loss = manifest.load(bundle).proof.loss
    assert 0.05 < loss.logits < PRECISIONS["int4"].loss_warned
    assert loss.tokens - 2 <= loss.equal_tokens <= loss.tokens
    assert loss.perplexity == pytest.approx(loss.source_perplexity, rel=0.2)
    for command in ("inspect", "verify"):
        done = run_command(command, bundle)
        assert " ".join(str(loss).split()) in " ".join(done.stdout.split()), done.stdout
    told = json.loads(run_command("verify", bundle, "--json").stdout)
    assert told["loss"] == dataclasses.asdict(loss)


def test_weights_that_are_not_rounded_lose_nothing(bundle: Path):
    assert manifest.load(bundle).proof.loss is None


@pytest.mark.parametrize("name", ["paligemma", "paligemma2", "perception_lm", "kosmos2"])
def test_logits_of_a_given_answer_are_those_of_generate(name: str):
    """In one pass as step by step."""
    checkpoint = hub.open_checkpoint(CHECKPOINTS / name)
    family = registry.find(checkpoint.config["model_type"])
    questions = list(zip(proof.images(), family.recipe(checkpoint).examples))
    generated = proof.expectations(checkpoint, family, questions, (0,))
    answers = [arrays["token_ids"] for arrays in generated]
    assert [len(answer) for answer in answers] == [proof.NEW_TOKENS] * len(questions)
    given = proof.expectations(checkpoint, family, questions, (0,), answers=answers)
    for one, other in zip(generated, given, strict=True):
        for part in one:
            np.testing.assert_allclose(other[part], one[part], atol=1e-4, err_msg=part)


def test_a_lost_weight_is_named_beside_the_checkpoint(bundles: Callable[..., Path], tmp_path: Path):
    """Its proof computed now, with the weights that the bundle has: only a comparison of weights can tell."""
    bundle = Path(shutil.copytree(bundles("paligemma2", "int4"), tmp_path / "bundle"))
    with zeroed(bundle, "decoder", "causal_lm.model.layers.1.mlp.up_proj.weight.T"):
        done = run_command("verify", bundle, "--checkpoint", CHECKPOINTS / "paligemma2", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, checks["weights"]["passed"]) == (1, False)
    assert "layers.1.mlp.up_proj.weight" in checks["weights"]["note"]


def test_a_deep_random_model_loses_much_at_4_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its graphs are right, so that the loss alone decides."""
    checkpoint = random_models.paligemma(tmp_path / "checkpoint", seed=0, image_size=28, layers=12)
    with pytest.raises(ExportError, match=r"rounding the weights changes .* too much.*--accept-loss"):
        export_model(checkpoint, tmp_path / "bundle", precision="int4")
    assert not (tmp_path / "bundle").exists()
    warned: list[str] = []
    monkeypatch.setattr(verdict.logger, "warning", lambda text, *values: warned.append(text % values))
    bundle = export_model(checkpoint, tmp_path / "bundle", precision="int4", accept_loss=True)
    assert warned[0].startswith("rounding the weights changes checkpoint noticeably")
    assert all(check.passed for check in verify(bundle, ONE_THREAD))
    assert manifest.load(bundle).proof.loss.logits > PRECISIONS["int4"].loss_refused


def test_a_weight_that_is_written_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    judge = verdict.judge

    def damaged(folder: Path, *rest: object) -> None:
        graph, name = quantised_weights(folder)[-1]
        tensor = ir.load(folder / f"{graph}.onnx").graph.initializers[f"{name}.scales"].const_value
        with (folder / f"{graph}.onnx.data").open("r+b") as file:
            file.seek(tensor.offset)
            file.write(bytes(tensor.nbytes))
        judge(folder, *rest)

    monkeypatch.setattr(verdict, "judge", damaged)
    with pytest.raises(ExportError, match=r"(?s)does not do what paligemma2 does.*logits: error"):
        export_model(CHECKPOINTS / "paligemma2", tmp_path / "bundle", precision="int4")


def test_a_second_graph_that_does_something_else_is_left_out(
    bundles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    warned: list[str] = []
    monkeypatch.setattr(verdict.logger, "warning", lambda text, *values: warned.append(text % values))
    bundle = Path(shutil.copytree(bundles("perception_lm", "int4"), tmp_path / "bundle"))
    evidence = stored_proof.read(manifest.load(bundle), bundle)
    verdict.judge_columns(bundle, evidence)
    assert not warned
    path, size = bundle / expansion.TABLE, (bundle / "decoder.onnx.data").stat().st_size
    weights = {weight.columns_name: weight for weight in expansion.load(path, size).weights}
    gate, up = (next(name for name in weights if f"layers.2.mlp.{part}_proj" in name) for part in ("gate", "up"))
    places = weights[gate].values, weights[up].values
    weights[up], weights[gate] = (dataclasses.replace(weights[n], values=v) for n, v in zip((up, gate), places))
    expansion.Table((*weights.values(),)).save(path)
    verdict.judge_columns(bundle, evidence)
    assert not [name for name in (expansion.TABLE, expansion.GRAPH) if (bundle / name).exists()]
    (warning,) = warned
    assert "cannot be expanded" in warning
    assert "prefill logits" in warning
