"""Shared weights: written once, read from then on, the same answers; what is damaged, refused or forgotten."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.graphs import manifest
from onnx_vlm.runtime import BundleError, InputError, ProviderError, load
from onnx_vlm.runtime.inference import opening, shared_weights
from onnx_vlm.runtime.inference.shared_weights import MOST, OLD, weights_folder
from onnx_vlm.runtime.pipeline import Pipeline
from onnx_vlm.runtime.providers import ort_session
from onnx_vlm.runtime.providers.caches import CACHE_VARIABLE
from onnx_vlm.runtime.providers.load_options import LoadOptions
from PIL import Image


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path / "weights"


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share weights too that are as small as those of the tests."""
    monkeypatch.setattr(ort_session, "LARGE", 1 << 10)


@pytest.fixture
def shared(bundles: Callable[..., Path]) -> Path:
    """A bundle, rounded as those are that many processes load."""
    return bundles("perception_lm", "int4")


def features(pipeline: Pipeline) -> list[np.ndarray]:
    """What all graphs of a bundle return."""
    engine, random = pipeline.engine, np.random.default_rng(0)
    (pixels,) = engine.manifest.graphs["vision_encoder"].inputs
    rows = engine.encode_images(random.normal(size=(1, *pixels.shape[1:])).astype(np.float32))
    logits, run = engine.start([rows[0]], 2)
    return [rows, logits, run.step(np.zeros(1, np.int64), np.array([5]))]


def test_answers_are_the_same_and_weights_are_written_once(shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    expected = features(load(shared, threads=1).pipeline)
    assert not cache.exists()
    vlm = load(shared, threads=1, share_weights=True)
    kept = weights_folder(vlm.manifest)
    assert sorted(path.name for path in kept.iterdir()) == sorted(vlm.manifest.graphs)
    assert [path for path in cache.iterdir() if path != kept] == []
    monkeypatch.setattr(shared_weights, "write_laid_out", pytest.fail)
    again = load(shared, threads=1, share_weights=True)
    for ours in (vlm, again):
        for ours_array, array in zip(features(ours.pipeline), expected, strict=True):
            np.testing.assert_array_equal(ours_array, array)
    assert again.generate("describe", Image.new("RGB", (64, 64)), max_new_tokens=4).token_ids


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process's memory")
def test_weights_are_pages_of_the_file(shared: Path, cache: Path):
    vlm = load(shared, threads=1, share_weights=True)
    features(vlm.pipeline)
    data = weights_folder(vlm.manifest) / "vision_encoder" / "vision_encoder.onnx.data"
    maps = Path("/proc/self/smaps").read_text().split(f"{data}\n")[1:]
    resident = sum(int(re.search(r"Rss:\s+(\d+) kB", block)[1]) for block in maps) << 10
    assert resident > vlm.manifest.files["vision_encoder.onnx.data"].size / 2


def test_damaged_weights_are_written_anew(shared: Path, cache: Path):
    vlm = load(shared, threads=1, share_weights=True)
    expected = features(vlm.pipeline)
    del vlm
    graph = weights_folder(manifest.load(shared)) / "vision_encoder" / "vision_encoder.onnx"
    graph.write_bytes(b"damaged")
    vlm = load(shared, threads=1, share_weights=True)
    np.testing.assert_array_equal(features(vlm.pipeline)[0], expected[0])
    assert graph.stat().st_size > 1000


def test_a_damaged_bundle_is_an_error(shared: Path, cache: Path, tmp_path: Path):
    damaged = shutil.copytree(shared, tmp_path / "damaged")
    graph = damaged / "decoder.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be written"):
        load(damaged, threads=1, share_weights=True)
    assert not [*cache.glob("*/decoder")]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (b"", True),
        (b"prepacked_0\x12\x38MatMulNBits+758|4096;100;0", True),
        (b"prepacked_0\x12\x38MatMulNBits+758|4096;100;0;4224;9;0", True),
        (b"prepacked_0\x12\x38MatMulNBits+758|4096;100;0;4200;9;0", False),
        (b"prepacked_0\x12\x38MatMulNBits+758|4098;100;0", False),
        (b"prepacked_0 in words of another version", False),
    ],
)
def test_weights_that_kernels_cannot_take_are_found(tmp_path: Path, told: bytes, expected: bool):
    (tmp_path / "graph").write_bytes(b"\n\x0f" + told + b"p\x01*g" + told)
    assert ort_session.aligned(tmp_path / "graph") is expected


def test_other_bundles_are_forgotten_by_age(shared: Path, cache: Path):
    for age in range(MOST):
        (cache / f"bundle{age}").mkdir(parents=True)
        os.utime(cache / f"bundle{age}", (1e9 - age, 1e9 - age))
    (cache / f"{shared_weights.ASIDE}killed").mkdir()
    os.utime(cache / f"{shared_weights.ASIDE}killed", (1e9, 1e9))
    (cache / f"{shared_weights.ASIDE}running").mkdir()
    assert OLD < 1e6
    load(shared, threads=1, share_weights=True)
    left = {path.name for path in cache.iterdir()}
    own = weights_folder(manifest.load(shared)).name
    assert left == {own, *(f"bundle{age}" for age in range(MOST - 1)), f"{shared_weights.ASIDE}running"}


def test_a_process_that_is_later_takes_what_is_there(shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    load(shared, threads=1, share_weights=True)
    kept = weights_folder(manifest.load(shared))
    monkeypatch.setattr(Path, "is_dir", lambda self: self.parent != kept and os.path.isdir(self), raising=True)
    written: list[Path] = []
    write = shared_weights.write_laid_out

    def late(graph: Path, target: object, path: Path) -> None:
        monkeypatch.undo()
        monkeypatch.setenv(CACHE_VARIABLE, str(cache.parent))
        written.append(path)
        write(graph, target, path)

    monkeypatch.setattr(shared_weights, "write_laid_out", late)
    vlm = load(shared, threads=1, share_weights=True)
    assert written
    assert features(vlm.pipeline)
    assert [path.name for path in cache.iterdir()] == [kept.name]


def test_no_folder_and_no_room_are_errors(shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    cache.parent.joinpath("weights").write_text("a file")
    with pytest.raises(InputError, match="cannot hold weights to be shared"):
        load(shared, threads=1, share_weights=True)
    cache.unlink()
    monkeypatch.setattr(shared_weights, "SIZE", 1e15)
    with pytest.raises(InputError, match="GB left"):
        load(shared, threads=1, share_weights=True)
    assert [*cache.rglob("*.onnx")] == []


def test_a_device_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening.probe, "require", lambda target: None)
    with pytest.raises(ProviderError, match="on the CPU alone"):
        load(shared, provider="cuda", share_weights=True)


def test_graphs_are_opened_before_the_vocabulary_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    begun: list[str] = []
    read, open_session = Pipeline.__init__.__globals__["Prompts"], opening.Session
    monkeypatch.setattr(opening, "Session", lambda *given: begun.append("graph") or open_session(*given))
    monkeypatch.setitem(
        Pipeline.__init__.__globals__, "Prompts", lambda *given: begun.append("vocabulary") or read(*given)
    )
    load(bundle, threads=1)
    assert begun[0] == "graph"
    assert LoadOptions().share_weights is False
