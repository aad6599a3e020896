"""What an export refuses and leaves behind, and the layouts of checkpoints it reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from held_out import ask, shares
from helpers import CHECKPOINT, CHECKPOINTS, run_command
from onnx_vlm.export import export_model
from onnx_vlm.export.checkpoint import hub
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.estimate import Estimate
from onnx_vlm.export.families import paligemma, registry
from onnx_vlm.export.proof import bundle_in_parts, proof, source_model
from onnx_vlm.graphs import CheckpointError, ExportError, contract, manifest
from onnx_vlm.graphs.transforms.split import split
from onnx_vlm.runtime import load, stored_proof
from onnx_vlm.runtime.inference.stages import Loaded
from onnx_vlm.runtime.verify import compare
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

TENSORS = "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the trained checkpoint that a test may change."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py", "*.md")))


def same_bundle(a: Path, b: Path) -> bool:
    """Whether two bundles hold the same graphs, weights and tokenizer."""
    return manifest.load(a).files == manifest.load(b).files


def rename_tensors(checkpoint: Path, rename: Callable[[str], str]) -> None:
    tensors = load_file(checkpoint / TENSORS)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, checkpoint / TENSORS, {"format": "pt"})


def test_a_bundle_is_what_the_manifest_says(bundle: Path):
    made = manifest.load(bundle)
    assert set(made.graphs) == set(contract.GRAPHS)
    written = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(made.files) == written - {manifest.FILE_NAME}
    assert all(manifest.sha256(bundle / name) == file.sha256 for name, file in made.files.items())
    assert made.source == {"checkpoint": "paligemma2", "model_type": "paligemma"}
    layers = [name for name in (spec.name for spec in made.graphs["decoder"].inputs) if name.endswith(".key")]
    assert layers == [f"past_key_values.{layer}.key" for layer in range(4)]
    assert np.load(bundle / contract.EMBED_TOKENS, mmap_mode="r").dtype == np.float32


def test_no_path_or_source_line_of_the_exporting_machine_is_in_a_graph(bundle: Path):
    for path in bundle.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


def test_progress_is_told_in_bytes(tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    output = export_model(CHECKPOINT, tmp_path / "bundle", progress=lambda *step: told.append(step))
    written = [(done, total) for step, done, total in told if step == "write"]
    assert told[0][0] == "trace vision_encoder"
    assert written == sorted(written)
    assert written[-1][0] == written[-1][1]
    data = sum(path.stat().st_size for path in output.iterdir() if path.suffix in (".data", ".npy"))
    assert written[-1][1] == pytest.approx(data, rel=0.02)


def test_older_key_layouts_and_preprocessor_files_give_the_same_bundle(checkpoint: Path, bundle: Path, tmp_path: Path):
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (checkpoint / "processor_config.json").unlink()
    rename_tensors(checkpoint, lambda name: name.replace("vision_tower.", "vision_tower.vision_model."))
    assert same_bundle(export_model(checkpoint, tmp_path / "old"), bundle)


def test_newer_key_layouts_and_shards_give_the_same_bundle(checkpoint: Path, bundle: Path, tmp_path: Path):
    def newer(name: str) -> str:
        return "model." + name.replace("language_model.model.", "language_model.")

    rename_tensors(checkpoint, newer)
    tensors = load_file(checkpoint / TENSORS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in shards.items():
        save_file({name: tensors[name] for name in some}, checkpoint / file)
    index = {"metadata": {}, "weight_map": {name: file for file, some in shards.items() for name in some}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / TENSORS).unlink()
    assert same_bundle(export_model(checkpoint, tmp_path / "new"), bundle)


def test_an_existing_folder_is_kept(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="exists"):
            export_model(CHECKPOINT, folder, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (folder / "thesis.txt").read_text() == "precious"


def test_a_bundle_is_replaced_only_by_a_complete_one(checkpoint: Path, bundle: Path, tmp_path: Path):
    old = Path(shutil.copytree(bundle, tmp_path / "here" / "old"))
    (old / "mark").write_text("old")
    with pytest.raises(ExportError, match="--overwrite"):
        export_model(checkpoint, old)
    (checkpoint / TENSORS).write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        export_model(checkpoint, old, overwrite=True)
    assert (old / "mark").exists()
    export_model(CHECKPOINT, old, overwrite=True)
    assert not (old / "mark").exists()
    assert [path.name for path in old.parent.iterdir()] == ["old"]


def test_tensors_of_a_type_that_is_not_read_are_refused(checkpoint: Path, tmp_path: Path):
    tensors = load_file(checkpoint / TENSORS)
    name = "multi_modal_projector.linear.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, checkpoint / TENSORS, {"format": "pt"})
    with pytest.raises(CheckpointError, match="tensors of F8_E4M3; save the model in one of F64, F32, F16, BF16"):
        export_model(checkpoint, tmp_path / "bundle")


def test_every_misfit_is_named_at_once(checkpoint: Path, tmp_path: Path):
    tensors = load_file(checkpoint / TENSORS)
    del tensors["vision_tower.post_layernorm.bias"]
    tensors["multi_modal_projector.linear.weight"] = torch.zeros(3, 5)
    tensors["language_model.model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(tensors, checkpoint / TENSORS, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        export_model(checkpoint, tmp_path / "bundle")
    for said in (
        "model.vision_tower.post_layernorm.bias: missing",
        "multi_modal_projector.linear.weight: shape (3, 5), the config asks for (128, 128)",
        "language_model.model.layers.9.mlp.up_proj.weight: the config has no place for it",
    ):
        assert said in str(caught.value)
    assert not list(tmp_path.glob("*bundle*"))


def edit_config(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (
            lambda folder: edit_config(folder, model_type="unknown"),
            "'unknown' is not supported; supported: colpali, gemma3, idefics3, kosmos-2, llava, paligemma, ",
        ),
        (lambda folder: (folder / TENSORS).unlink(), "only safetensors"),
        (lambda folder: (folder / TENSORS).write_bytes(b"no tensors"), TENSORS),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda folder: edit_config(folder, image_token_index=7), "<image>"),
        (lambda folder: edit_config(folder, text_config={"model_type": "gemma2", "hidden_size": -1}), "config.json"),
        (shutil.rmtree, "no config.json"),
    ],
)
def test_what_is_no_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, damage: Callable, said: str):
    damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        export_model(checkpoint, tmp_path / "bundle")
    assert said in str(caught.value)
    assert caught.value.exit_status == 2
    assert not list(tmp_path.glob("*bundle*"))


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / name, folder, ignore=shutil.ignore_patterns("*.py", "*.md")))


def test_a_class_token_that_has_no_place_in_the_prompt_is_refused(tmp_path: Path):
    checkpoint = copied("perception_lm", tmp_path / "checkpoint")
    edit_config(checkpoint, vision_use_cls_token=False)
    with pytest.raises(CheckpointError, match=r"17 vision features \(class token kept\)"):
        export_model(checkpoint, tmp_path / "bundle")
    edit_config(checkpoint, vision_use_cls_token=True, projector_pooling_ratio=1)
    with pytest.raises(CheckpointError, match="a pooling ratio of 1, but 4 placeholders"):
        export_model(checkpoint, tmp_path / "bundle")


def test_rotary_angles_that_depend_on_the_length_are_refused(tmp_path: Path):
    checkpoint = copied("perception_lm", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    edit_config(checkpoint, text_config=config["text_config"] | {"rope_parameters": rope})
    with pytest.raises(CheckpointError, match="'dynamic'"):
        export_model(checkpoint, tmp_path / "bundle")


def test_heads_that_the_operator_does_not_take_are_refused(tmp_path: Path):
    for name, key, head_dim in (("perception_lm", "head_dim", 24), ("kosmos2", "attention_heads", 64)):
        checkpoint = copied(name, tmp_path / name)
        config = json.loads((checkpoint / "config.json").read_text())
        edit_config(checkpoint, text_config=config["text_config"] | {key: head_dim})
        with pytest.raises(CheckpointError, match=r"attention heads of (24|2) are not supported, only multiples of"):
            export_model(checkpoint, tmp_path / "bundle")


def test_a_chat_model_without_a_template_is_refused(tmp_path: Path):
    checkpoint = copied("perception_lm", tmp_path / "checkpoint")
    (checkpoint / contract.CHAT_TEMPLATE).unlink()
    with pytest.raises(CheckpointError, match=contract.CHAT_TEMPLATE):
        export_model(checkpoint, tmp_path / "bundle")


def export_without(packages: tuple[str, ...], checkpoint: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Run the command where some packages are not installed."""
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {packages!r} else find(name, *rest)
sys.meta_path.insert(0, Missing())
sys.argv = ["onnx-vlm", "export", {str(checkpoint)!r}, {str(output)!r}]
from onnx_vlm.runtime.cli import main
main()
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_timm_and_torchvision_are_needed_by_one_family_alone(tmp_path: Path):
    done = export_without(("timm", "torchvision"), CHECKPOINT, tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    done = export_without(("timm", "torchvision"), CHECKPOINTS / "perception_lm", tmp_path / "other")
    assert done.returncode == 2, done.stderr
    assert "'perception_lm' needs timm; install it: pip install 'onnx-vlm[export]'" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_torchvision_for_another_torch_does_not_stop_an_export():
    """Its compiled library is kept from loading, as that of a build for another torch does not load."""
    code = """
import torch
load = torch.ops.load_library
def refuse(path):
    raise OSError(f"{path}: undefined symbol")
torch.ops.load_library = refuse
import onnx_vlm.export
import torchvision.transforms.v2
import timm
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_bundle_is_small_and_still_right(bundles: Callable[..., Path], bundle: Path, precision: str):
    quantised = bundles("paligemma2", precision)
    made = manifest.load(quantised)
    assert made.precision == dict.fromkeys((*contract.GRAPHS, "embed_tokens"), "int8") | {"decoder": precision}
    assert np.load(quantised / contract.EMBED_TOKENS).dtype == np.uint8
    sizes = [(folder / "decoder.onnx.data").stat().st_size for folder in (quantised, bundle)]
    bits = {"int8": 8, "int4": 4}[precision] + 1  # and a scale of 32 bits for 32 weights
    assert sizes[0] < sizes[1] * (bits + 1) / 32
    right = shares(ask("paligemma2", load(quantised, threads=1), 100))
    assert min(right.values()) >= 0.9


def test_an_unknown_precision_is_refused(tmp_path: Path):
    for options in ({"precision": "int2"}, {"vision_precision": "double"}):
        with pytest.raises(ExportError, match="supported: fp32, fp16, bf16, int8, int4"):
            export_model(CHECKPOINT, tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path: Path):
    for checkpoint, options in ((CHECKPOINT, ("--precision", "int2")), (tmp_path / "none", ())):
        done = run_command("export", checkpoint, tmp_path / "bundle", *options)
        assert (done.returncode, done.stdout, done.stderr[:6]) == (2, "", "error:")
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    told: list[Estimate] = []
    with pytest.raises(ExportError, match=r"needs about 0\.01 GB and .* has 0\.01 GB free; make room"):
        export_model(CHECKPOINT, tmp_path / "bundle", announce=told.append)
    assert [str(one).split(",")[0] for one in told] == ["about 7 MB on disk"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["trace decoder", "write", "prove", "seal"])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, when: str):
    def interrupt(step: str, done: int, total: int) -> None:
        if step == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(CHECKPOINT, tmp_path / "bundle", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_pickles_are_refused_with_the_way_out(checkpoint: Path, tmp_path: Path):
    (checkpoint / TENSORS).rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a pickle may run code .* save_pretrained"):
        export_model(checkpoint, tmp_path / "bundle")


def test_the_source_model_is_the_same_with_its_weights_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trained checkpoints are so small that all of them would be kept in memory."""
    checkpoint = hub.open_checkpoint(CHECKPOINT)
    found = []
    for kept in (source_model.KEPT, 0):
        monkeypatch.setattr(source_model, "KEPT", kept)
        found += proof.expectations(checkpoint, paligemma, [(proof.images()[0], "caption")], (1,))
    for name in found[0]:
        assert np.allclose(found[0][name], found[1][name], atol=1e-5), name


def test_weights_that_a_module_takes_past_its_parts_are_kept(monkeypatch: pytest.MonkeyPatch):
    """The attention of SigLIP's pooling head is PyTorch's own, which does not call its output layer."""
    monkeypatch.setattr(source_model, "KEPT", 0)
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    real, pixels = SiglipVisionModel(config).eval(), torch.randn(2, 3, 28, 28)
    with source_model.empty_parameters():
        streamed = SiglipVisionModel(config)
    values = dict(real.named_parameters())
    source_model.read_from_disk(
        streamed, {id(weight): values[name].detach().numpy() for name, weight in streamed.named_parameters()}
    )
    with torch.inference_mode():
        assert torch.allclose(streamed(pixels).pooler_output, real(pixels).pooler_output, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("paligemma2", "fp32"), ("perception_lm", "fp32"), ("kosmos2", "fp32"), ("perception_lm", "int4")],
)
def test_a_bundle_run_in_parts_gives_what_it_gives_whole(
    bundles: Callable[..., Path], name: str, precision: str, monkeypatch: pytest.MonkeyPatch
):
    """Trained bundles are so small that each graph would be one part."""
    folder, parts = bundles(name, precision), []
    monkeypatch.setattr(bundle_in_parts, "AT_ONCE", 100_000 if precision == "fp32" else 20_000)
    monkeypatch.setattr(bundle_in_parts, "split", lambda *given: parts.append(list(split(*given))) or parts[-1])
    evidence = stored_proof.read(manifest.load(folder), folder)
    loaded = load(folder, threads=1).pipeline
    whole, some = Loaded(loaded.prompts, loaded.engine), bundle_in_parts.OnDisk(folder)
    for ours, theirs in zip(compare(some, evidence), compare(whole, evidence)):
        assert ours.name == theirs.name
        assert ours.error == pytest.approx(theirs.error, abs=1e-6)
    assert min(len(parts[0]), len(parts[2])) > 3


def test_a_bundle_that_does_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = paligemma.recipe

    def scaled(checkpoint: Checkpoint) -> registry.Recipe:
        found = recipe(checkpoint)
        return dataclasses.replace(found, embedding=manifest.Embedding(found.embedding.scale * 1.01))

    monkeypatch.setattr(paligemma, "recipe", scaled)
    with pytest.raises(ExportError, match=r"(?s)does not do what paligemma2 does.*prefill logits: error"):
        export_model(CHECKPOINT, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
