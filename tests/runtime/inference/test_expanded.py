"""Expanded weights: prompts run by them, steps by the blocks; what refuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.runtime import BundleError, ProviderError, load
from onnx_vlm.runtime.inference import expanded
from onnx_vlm.runtime.inference.host_run import MANY
from onnx_vlm.runtime.inference.session import Session


@pytest.fixture
def on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expand weights on CPUs too that are slower with them."""
    monkeypatch.setattr(expanded, "pays", lambda: True)


@pytest.mark.usefixtures("on_any_cpu")
def test_prompts_run_by_columns_and_steps_by_blocks(
    bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
):
    folder = bundles("perception_lm", "int4")
    plain, both = (load(folder, threads=1, expand_weights=expand).pipeline.engine for expand in (False, True))
    random = np.random.default_rng(0)
    prompts = [random.normal(size=(length, plain.manifest.hidden)).astype(np.float32) for length in (9, 30)]
    ran: list[Session] = []
    run_bound = Session.run_bound
    monkeypatch.setattr(Session, "run_bound", lambda self, *given: ran.append(self) or run_bound(self, *given))
    expected, run = plain.start(prompts, 4)
    later = run.step(np.arange(2), np.array([5, 6]))
    assert len({*ran}) == 1
    ran.clear()
    logits, run = both.start(prompts, 4)
    steps = run.step(np.arange(2), np.array([5, 6]))
    first, second = ran
    assert first is not second
    run.append(0, [prompts[0][: MANY - 1]])
    run.append(0, [prompts[0][:MANY]])
    assert ran[2:] == [second, first]
    for ours, theirs in ((logits, expected), (steps, later)):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        figure(f"logits of columns beside those of blocks: {error:.1e}")
        assert 0 < error < 0.05


@pytest.mark.usefixtures("on_any_cpu")
def test_vectors_come_from_columns(bundles: Callable[..., Path]):
    folder = bundles("colpali", "int4")
    plain, both = (load(folder, threads=1, expand_weights=expand).pipeline.engine for expand in (False, True))
    prompt = np.random.default_rng(0).normal(size=(20, plain.manifest.hidden)).astype(np.float32)
    (expected,), (ours,) = (engine.vectors([prompt]) for engine in (plain, both))
    assert 0 < np.linalg.norm(ours - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.usefixtures("on_any_cpu")
def test_vectors_need_no_blocks_in_memory(bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    start = Session.__init__
    monkeypatch.setattr(
        Session, "__init__", lambda self, path, *a, **k: opened.append(path.name) or start(self, path, *a, **k)
    )
    vlm = load(bundles("colpali", "int4"), threads=1, expand_weights=True)
    assert opened == ["decoder_columns.onnx"]
    vlm.embed(queries="a red circle")
    assert opened == ["decoder_columns.onnx"]
    vlm.embed(images=np.zeros((56, 56, 3), np.uint8))
    assert sorted(opened) == ["decoder_columns.onnx", "projector.onnx", "vision_encoder.onnx"]


@pytest.mark.usefixtures("on_any_cpu")
def test_a_bundle_without_them_is_refused(bundle: Path):
    with pytest.raises(BundleError, match="no weights to expand"):
        load(bundle, threads=1, expand_weights=True)


def test_a_cpu_on_which_they_are_slower_is_refused(bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expanded, "pays", lambda: False)
    with pytest.raises(ProviderError, match="dot product of bytes"):
        load(bundles("perception_lm", "int4"), threads=1, expand_weights=True)
