"""Random small models of odd configurations against transformers: every stage, every token, single and ragged batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.export import export_model
from onnx_vlm.runtime import load
from PIL import Image
from random_models import MODELS, paligemma
from source import TOLERANCE, Source, assert_same_tokens, stage_errors

PROMPTS = ("caption", "detect red circle ; blue square", "how many circles", "", "<loc0012> what?")
NEW_TOKENS = 24


@pytest.mark.parametrize(("seed", "name"), list(enumerate(MODELS)), ids=list(MODELS))
def test_random_model(tmp_path: Path, seed: int, name: str):
    checkpoint = paligemma(tmp_path / "checkpoint", seed=seed, **MODELS[name])
    vlm = load(export_model(checkpoint, tmp_path / "bundle"))
    source = Source(checkpoint)
    random = np.random.default_rng(seed)
    pictures = [Image.fromarray(random.integers(0, 256, (*random.integers(1, 200, 2), 3), np.uint8)) for _ in PROMPTS]
    answers = vlm.generate(PROMPTS, pictures, max_new_tokens=NEW_TOKENS)
    truths = source.answer(list(PROMPTS), pictures, NEW_TOKENS)
    assert len({tuple(truth.ids) for truth in truths}) == len(PROMPTS), "the answers tell pictures and prompts apart"
    for prompt, picture, answer, truth in zip(PROMPTS, pictures, answers, truths):
        assert_same_tokens(answer.token_ids, truth, f"{name}, batch, {prompt!r}")
        alone = source.answer([prompt], [picture], NEW_TOKENS)[0]
        assert_same_tokens(
            vlm.generate(prompt, picture, max_new_tokens=NEW_TOKENS).token_ids, alone, f"{name}, {prompt!r}"
        )
    errors = stage_errors(vlm, source, PROMPTS[1], pictures[1], NEW_TOKENS)
    assert max(errors.values()) < TOLERANCE, errors
