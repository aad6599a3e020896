"""Families of other packages: one is exported and run end to end against transformers, others are refused."""

from __future__ import annotations

import ast
import re
import tomllib
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
from transformers import AutoImageProcessor, AutoTokenizer, VipLlavaConfig, VipLlavaForConditionalGeneration
from transformers.models.clip.image_processing_clip import CLIPImageProcessor


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "paligemma2")
    config = VipLlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 67,
            "num_hidden_layers": 5,
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
        vision_feature_layer=[-2, -3, 1],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = VipLlavaForConditionalGeneration(config)
    telling_weights(model)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for part in (model, tokenizer, images):
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


class VipLlavaSource(Source):
    """Asked as `outside_family` asks."""

    batches = False

    def __init__(self, folder: Path) -> None:
        self.model = VipLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder)

    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        text = f"<bos>###Human: {'<image>' * 4}\n{request.prompt}###Assistant:"
        pixels = self.image_processor(request.images, return_tensors="pt")
        return {**self.tokenizer(text, add_special_tokens=False, return_tensors="pt"), **pixels}


class Site:
    """A folder of installed packages, whose families are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, points: str, **modules: str) -> None:
        """Install a package with entry points as a pyproject.toml has them, and modules by name."""
        about = self.folder / f"{package}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        families = tomllib.loads(points)["project"]["entry-points"]["onnx_vlm.families"]
        lines = "".join(f"{name} = {module}\n" for name, module in families.items())
        (about / "entry_points.txt").write_text(f"[onnx_vlm.families]\n{lines}")
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path / "site")
    return Site(tmp_path / "site")


def points(model_type: str, module: str) -> str:
    return f'[project.entry-points."onnx_vlm.families"]\n{model_type} = "{module}"\n'


def test_a_family_of_another_package(checkpoint: Path, tmp_path: Path, site: Site, judge: Judge, threads: int):
    with pytest.raises(CheckpointError, match="'vipllava' is not supported"):
        export_model(checkpoint, tmp_path / "bundle")
    (example,) = re.findall(r"^```toml\n(.*?)^```", (REPOSITORY / "docs" / "add-a-family.md").read_text(), re.M | re.S)
    site.install("vipllava-for-onnx-vlm", example, vipllava_family=Path(outside_family.__file__).read_text())
    vlm = load(export_model(checkpoint, tmp_path / "bundle"), threads=threads)
    source = VipLlavaSource(checkpoint)
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(2)]
    requests = [ask("What is it?", pictures[:1]), ask("Why is there a red circle in it?", pictures[1:])]
    answers = vlm.generate([one.prompt for one in requests], [one.images for one in requests], max_new_tokens=24)
    for request, answer, truth in zip(requests, answers, source.answer(requests, 24)):
        judge.tokens(source, answer.token_ids, truth, request.prompt)
    pixels = source.inputs(requests[0])["pixel_values"]
    theirs = source.model.get_image_features(pixel_values=pixels).pooler_output[0]
    (ours,) = vlm.pipeline.engine.encode_images(tiles.tiles(pictures[0], vlm.manifest.image))
    assert relative_error(ours, theirs.detach().numpy()) < TOLERANCE


def test_a_registered_family_comes_first(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_MODULES", dict(registry._MODULES))  # registered for this test alone
    site.install("a-package", points("kosmos-2", "no_such_module"))
    kit.register("kosmos-2", outside_family)
    assert registry.find("kosmos-2") is outside_family


@pytest.mark.parametrize(
    ("model_type", "module", "source", "problem"),
    [
        ("broken", "absent_family", None, "does not load, absent_family of the package bad 1.0: ModuleNotFoundError"),
        ("broken", "raising_family", "1 / 0", "ZeroDivisionError: division by zero; mend, upgrade or uninstall"),
        ("broken", "partial_family", "def build(): ...", "is no family: it has no function recipe, source_inputs"),
        ("llava", "raising_family", "1 / 0", "the package bad 1.0 has a family for .* 'llava', which onnx-vlm has"),
        ("unknown", "raising_family", "1 / 0", "model_type 'asked' is not supported; .*perception_lm.*, unknown"),
    ],
)
def test_families_that_are_refused(site: Site, model_type: str, module: str, source: str | None, problem: str):
    site.install("bad", points(model_type, module), **({module: source} if source else {}))
    with pytest.raises(CheckpointError, match=problem):
        registry.find("asked" if model_type == "unknown" else model_type)


def test_two_packages_with_one_family(site: Site):
    for package in ("one", "two"):
        site.install(package, points("vipllava", "vipllava_family"))
    with pytest.raises(CheckpointError, match=r"(one|two) 1\.0 and the package (one|two) 1\.0 both have a family"):
        registry.find("vipllava")


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
