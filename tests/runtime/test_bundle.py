"""What is refused as a bundle, and how it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import BUNDLES
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
        "colour: unknown",
        "prompt.after: missing",
        "image.height: 'tall' is not int",
        "image.pixels.resample: 'magic'",
        "image.pixels.mean: [0.5]",
        "generation.eos_token_ids.1: '2' is not int",
    ):
        assert said in message


@pytest.mark.parametrize("version", [6, 1, 0, -1, "2", None, True, 8.0])
def test_a_format_that_is_too_old_or_none_is_refused(copy: Path, version: object):
    edit(copy, lambda data: data.update(format=version))
    assert f"format is {version!r}, this version reads 7 to {manifest.FORMAT}; export" in refused(copy)


def test_a_newer_format_says_which_version_reads_it(copy: Path):
    edit(copy, lambda data: data.update(format=manifest.FORMAT + 1, made_with={"onnx-vlm": "9.2.1"}, novelty=1))
    assert "takes onnx-vlm 9.2.1 or later: pip install --upgrade onnx-vlm" in refused(copy)
    edit(copy, lambda data: data.update(made_with=[]))
    assert "takes onnx-vlm of a newer version" in refused(copy)


def test_a_field_with_a_default_may_be_absent(copy: Path):
    edit(copy, lambda data: data["generation"].update(defaults={"top_p": 0.5}))
    read = manifest.load(copy).generation.defaults
    assert read == manifest.Sampling(top_p=0.5)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}"])
def test_what_is_no_manifest_is_refused(copy: Path, text: str):
    (copy / manifest.FILE_NAME).write_text(text)
    assert manifest.FILE_NAME in refused(copy)


GRID: dict[str, Any] = {
    "kind": "grid",
    "size": 28,
    "longest_edge": 56,
    "pixels": {"resample": "lanczos", "rescale_factor": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
}
NAMES = {"tile": "<{row}_{column}>", "row_end": "", "grid_end": "", "whole": "<whole>", "end": ""}
#: Where in the manifest, what is put there, and how the problem begins.
INVALID: list[tuple[str, str, Any, str]] = [
    ("", "image.max_tiles", 0, "image.max_tiles: 0 is not from 1"),
    ("", "image.max_tiles", -1, "image.max_tiles: -1 is not from 1"),
    ("", "image.max_tiles", 10**12, "image.max_tiles: 1000000000000 is not from 1"),
    ("", "image", {**GRID, "longest_edge": 10**9}, "image.longest_edge: 1000000000 is not from 1"),
    ("", "image", {**GRID, "size": 0}, "image.size: 0 is not from 1"),
    ("", "image", {**GRID, "size": 3}, "image: tiles of 3 x 3, the graph takes"),
    ("", "prompt.tiles", NAMES, "prompt.tiles: names tiles of a grid, and image is of the kind 'tiles'"),
    ("", "prompt.tiles", {**NAMES, "tile": "<{row}>"}, "prompt.tiles.tile: '<{row}>' does not take a row and a column"),
    ("", "prompt.tiles", {**NAMES, "tile": "{row.a}{column}"}, "prompt.tiles.tile: '{row.a}{column}' does not take"),
    ("", "prompt.tiles", {**NAMES, "end": "<|image|>"}, "prompt.tiles.end: '<|image|>' has the placeholder in it"),
    ("", "prompt.video_token_id", None, "prompt.video_token_id: must be null where prompt.video is"),
    ("", "prompt.video", None, "prompt.video: missing, although there is a recipe for videos"),
    ("", "prompt.system", "both", "prompt.system: 'both' is not"),
    ("", "video.tile.longest_edge", 0, "video.tile.longest_edge: 0 is not from 1"),
    ("", "video.frames", 0, "video.frames: 0 is not from 1"),
    ("", "video.frames", 10**12, "video.frames: 1000000000000 is not from 1"),
    ("", "prompt.image_token_id", 5, "prompt.image_token_id is 5, tokenizer.json has"),
    ("", "prompt.video_token_id", 5, "prompt.video_token_id is 5, tokenizer.json has"),
    ("", "prompt.image_token_id", -1, "prompt.image_token_id: -1 is not from 0"),
    ("", "precision", {}, "precision.decoder: missing"),
    ("", "precision.decoder", "fp8", "precision.decoder: 'fp8' is unknown; known: fp32"),
    ("", "source", {}, "source.checkpoint: missing"),
    ("", "graphs.vision_encoder.inputs", [], "graphs.vision_encoder.inputs: ranks (), (4,) are expected"),
    ("", "graphs.projector.outputs", [], "graphs.projector.outputs: ranks (), (3,) are expected"),
    ("", "graphs.decoder.inputs.0.shape", [], "graphs.decoder.inputs: ranks (0, 1, 0, 2)"),
    ("", "graphs.decoder.inputs.0.shape.2", 0, "graphs.decoder.inputs.inputs_embeds: shape"),
    ("", "graphs.decoder.inputs.0.shape.2", "wide", "graphs.decoder: a size varies that must be fixed"),
    ("", "graphs.other", {"inputs": [], "outputs": []}, "graphs.other: unknown; known: vision_encoder"),
    ("", "image.pixels.std.1", 0, "image.pixels.std: (0.5, 0.0, 0.5) has a 0"),
    ("", "image.pixels.rescale_factor", 1e400, "image.pixels.rescale_factor: inf is not float"),
    ("", "generation.max_positions", 0, "generation.max_positions: 0 is not from 1"),
    ("", "generation.eos_token_ids", [-1], "generation.eos_token_ids.0: -1 is not from 0"),
    ("", "generation.defaults.top_p", 7.0, "generation.defaults: top_p is 7.0; give a number from 0 to 1"),
    ("", "generation.defaults.early_stopping", 1, "generation.defaults.early_stopping: 1 is not"),
    ("", "prefill.token", -1, "prefill.token: -1 is not from 0"),
    ("", "files." + "a" * 300, {"size": 1, "sha256": ""}, "File name too long"),
    ("locations", "grounding.bins", 0, "grounding.bins: 0 is not from 2"),
    ("locations", "grounding.bins", 10**12, "grounding.bins: 1000000000000 is not from 2"),
    ("locations", "grounding.codes", -1, "grounding.codes: -1 is not from 0"),
    ("locations", "grounding.codes", 10**12, "grounding.codes: 1000000000000 is not from 0"),
    ("locations", "grounding.code_values", 0, "grounding.code_values: 0 is not from 1"),
    ("locations", "grounding.edges.0", "top", "grounding.edges: ('top', 'xmin', 'ymax', 'xmax') are not"),
    ("locations", "grounding.token", "<loc>", "grounding.token: '<loc>' does not take one number"),
    ("locations", "grounding.token", "{:9999999999}", "grounding.token: '{:9999999999}' does not take one number"),
    ("locations", "grounding.token", "{0.__class__}", "grounding.token: '{0.__class__}' does not take one number"),
    ("patches", "grounding.side", 0, "grounding.side: 0 is not from 1"),
    ("patches", "grounding.side", 10**12, "grounding.side: 1000000000000 is not from 1"),
]
GROUNDING: dict[str, dict[str, Any]] = {
    "locations": {
        "kind": "locations",
        "token": "<loc{:04d}>",
        "code": "<seg{:03d}>",
        "codes": 16,
        "code_values": 128,
        "bins": 1024,
        "edges": ["ymin", "xmin", "ymax", "xmax"],
        "separator": ";",
    },
    "patches": {
        "kind": "patches",
        "token": "<patch_index_{:04d}>",
        "side": 32,
        "phrase": ["<p>", "</p>"],
        "object": ["<o>", "</o>"],
        "separator": ";",
    },
}


@pytest.mark.parametrize(("grounding", "where", "value", "said"), INVALID, ids=lambda value: f"{value!s:.40}")
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, grounding: str, where: str, value: Any, said: str):
    copy = Path(shutil.copytree(BUNDLES / "format-7", tmp_path / "copy"))

    def damage(data: dict[str, Any]) -> None:
        data["grounding"] = GROUNDING.get(grounding)
        *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
        for parent in parents:
            data = data[parent]
        data[last] = value

    edit(copy, damage)
    assert said in refused(copy)


def test_a_weight_file_that_the_manifest_leaves_out_is_missed(copy: Path):
    edit(copy, lambda data: data["files"].pop("decoder.onnx.data"))
    assert "files.decoder.onnx.data: missing" in refused(copy)


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


def test_a_graph_with_names_that_are_no_text_is_refused(tmp_path: Path):
    folder = Path(shutil.copytree(BUNDLES / "format-7", tmp_path / "copy"))
    path = folder / "projector.onnx"
    data = path.read_bytes()
    assert b"tiles" in data
    path.write_bytes(data.replace(b"tiles", b"\xfftile"))
    assert "projector.onnx has names that are not UTF-8" in refused(folder)
