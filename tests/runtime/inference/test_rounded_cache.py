"""A KV cache of int8: answers together as alone, and prompts in parts as whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.inference import engine

PICTURES = [shapes.draw(shapes.scene(shapes.HELD_OUT + index)) for index in range(3)]
PROMPTS = {
    "perception_lm": ["Describe the picture.", "How many circles?", "Describe it, please, in a few words."],
    "paligemma2": ["caption", "detect red circle", "how many circles"],
}


@pytest.fixture(scope="module", params=PROMPTS)
def vlm(request: pytest.FixtureRequest, bundles: Callable[..., Path]) -> VLM:
    return load(bundles(request.param, kv_cache="int8"), threads=1)


def prompts_of(vlm: VLM) -> list[str]:
    return PROMPTS["perception_lm" if vlm.manifest.causal else "paligemma2"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}], ids=str)
def test_together_as_alone(vlm: VLM, options: dict):
    prompts = prompts_of(vlm)
    together = vlm.generate(prompts, PICTURES, max_new_tokens=16, **options)
    assert len({len(answer.token_ids) for answer in together}) > 1
    for prompt, picture, answer in zip(prompts, PICTURES, together):
        assert vlm.generate(prompt, picture, max_new_tokens=16, **options).token_ids == answer.token_ids


@pytest.mark.parametrize("vlm", ["perception_lm"], indirect=True)
def test_in_parts_as_whole(vlm: VLM, monkeypatch: pytest.MonkeyPatch):
    """The operator reads all keys rounded, those of the same run too."""
    prompts = [np.random.default_rng(index).standard_normal((40 + 9 * index, 128), "float32") for index in range(3)]
    prompts = [0.1 * prompt[:, : vlm.manifest.hidden] for prompt in prompts]
    found = []
    for part in (512, 16):
        monkeypatch.setattr(engine, "PART", part)
        logits, run = vlm.pipeline.engine.start(prompts, 4, copies=2)
        stepped = run.step(np.array([0, 0, 2, 1]), np.array([5, 6, 7, 8]))
        kept = vlm.pipeline.engine.resume(run, 30, prompts[0][30:], 4, 1)[0]
        found.append([logits, stepped, kept, logits[:1]])
    for whole, parts in zip(*found):
        np.testing.assert_allclose(parts, whole, atol=2e-2 * np.abs(whole).max())
        np.testing.assert_array_equal(parts.argmax(-1), whole.argmax(-1))
    np.testing.assert_allclose(found[0][2], found[0][0][:1], atol=2e-2 * np.abs(found[0][0]).max())
