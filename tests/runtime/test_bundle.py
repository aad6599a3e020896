"""What is refused as a bundle, and how it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx_vlm.graphs import manifest
from onnx_vlm.runtime import BundleError, load


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / manifest.FILE_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load(folder)
    return str(caught.value)


def test_a_manifest_survives_saving_and_loading(bundle: Path, tmp_path: Path):
    read = manifest.load(bundle)
    assert read.format == manifest.FORMAT
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    read.save(copied)
    assert manifest.load(copied) == read


def test_every_problem_of_a_manifest_is_named(copy: Path):
    def damage(data: dict[str, Any]) -> None:
        data["colour"] = "blue"
        del data["prompt"]["after"]
        data["image"]["height"] = "tall"
        data["image"]["pixels"]["resample"] = "magic"
        data["image"]["pixels"]["mean"] = [0.5]
        data["generation"]["eos_token_ids"] = [1, "2"]

    edit(copy, damage)
    message = refused(copy)
    for said in (
        "colour: unknown", "prompt.after: missing", "image.height: 'tall' is not int", "image.pixels.resample: 'magic'",
        "image.pixels.mean: [0.5]", "generation.eos_token_ids.1: '2' is not int",
    ):  # fmt: skip
        assert said in message


@pytest.mark.parametrize("version", [manifest.FORMAT + 1, 1, "2", None])
def test_another_format_is_refused(copy: Path, version: object):
    edit(copy, lambda data: data.update(format=version))
    assert f"format is {version!r}" in refused(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}"])
def test_what_is_no_manifest_is_refused(copy: Path, text: str):
    (copy / manifest.FILE_NAME).write_text(text)
    assert manifest.FILE_NAME in refused(copy)


def test_a_missing_or_cut_file_is_named(copy: Path):
    (copy / "decoder.onnx").unlink()
    data = copy / "vision_encoder.onnx.data"
    data.write_bytes(data.read_bytes()[:-8])
    message = refused(copy)
    assert "decoder.onnx: the file is missing" in message
    assert f"vision_encoder.onnx.data: {data.stat().st_size} bytes, {data.stat().st_size + 8} are expected" in message


def test_a_file_that_the_manifest_must_have_is_missed(copy: Path):
    edit(copy, lambda data: data["files"].pop("embed_tokens.npy"))
    assert "files.embed_tokens.npy: missing" in refused(copy)


def test_a_kind_that_does_not_exist_is_named(copy: Path):
    edit(copy, lambda data: data["image"].update(kind="mosaic"))
    assert "image.kind: 'mosaic' is not" in refused(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "folder/../../outside"])
def test_a_path_that_leaves_the_folder_is_refused(copy: Path, name: str):
    edit(copy, lambda data: data["files"].update({name: {"size": 1, "sha256": ""}}))
    assert f"files.{name}: the path leaves the folder" in refused(copy)


def test_a_graph_that_breaks_its_contract_is_refused(copy: Path):
    edit(copy, lambda data: data["graphs"]["decoder"]["inputs"][0].update(shape=["batch", "sequence", 7]))
    message = refused(copy)
    assert "decoder.onnx is not the graph of its manifest" in message
    assert "inputs_embeds" in message


def test_a_damaged_graph_tokenizer_or_table_is_refused(copy: Path, bundle: Path):
    for name in ("projector.onnx", "tokenizer.json", "embed_tokens.npy"):
        path = copy / name
        path.write_bytes(b"\0" * path.stat().st_size)
        assert name in refused(copy)
        shutil.copyfile(bundle / name, path)
    assert load(copy)
