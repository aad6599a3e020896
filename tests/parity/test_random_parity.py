"""Random small models of odd configurations against transformers: every stage, every token, single and ragged batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_vlm.export import export_model
from onnx_vlm.runtime import load
from onnx_vlm.runtime.inputs import Request
from PIL import Image
from random_models import KOSMOS2, PALIGEMMA, PERCEPTION_LM, Row
from source import TOLERANCE, ask, assert_same_tokens, open_source, stage_errors

NEW_TOKENS = 24


def pictures(random: np.random.Generator, number: int) -> list[Image.Image]:
    return [Image.fromarray(random.integers(0, 256, (*random.integers(1, 200, 2), 3), np.uint8)) for _ in range(number)]


def check(folder: Path, seed: int, row: Row, requests: list[Request], target: str = "onnxruntime") -> None:
    make, options = row
    checkpoint = make(folder / "checkpoint", seed=seed, **options)
    bundle = export_model(checkpoint, folder / "bundle", prove=False, target=target)
    vlm, source = load(bundle, threads=1), open_source(checkpoint)
    alone = [source.answer([request], NEW_TOKENS)[0] for request in requests]
    assert len({tuple(truth.ids) for truth in alone}) == len(requests), "the answers tell pictures and prompts apart"
    together = source.answer(requests, NEW_TOKENS)
    prompts, images, videos = zip(*((request.prompt, request.images, request.videos) for request in requests))
    bboxes = [request.bboxes for request in requests]
    answers = vlm.generate(prompts, images, videos, bboxes=bboxes, max_new_tokens=NEW_TOKENS)
    for request, answer, truth, single in zip(requests, answers, together, alone):
        assert_same_tokens(answer.token_ids, truth, f"batch, {request.prompt!r:.60}")
        ours = vlm.generate(
            request.prompt, request.images, request.videos, bboxes=request.bboxes, max_new_tokens=NEW_TOKENS
        )
        assert_same_tokens(ours.token_ids, single, f"{request.prompt!r:.60}")
    beams = {"num_beams": 3, "length_penalty": 0.7}
    ours = vlm.generate(prompts[:3], images[:3], videos[:3], bboxes=bboxes[:3], max_new_tokens=NEW_TOKENS, **beams)
    for request, answer in zip(requests, ours):
        assert answer.token_ids == source.answer([request], NEW_TOKENS, **beams)[0].ids, (
            f"beams, {request.prompt!r:.60}"
        )
    for request in requests[1:3]:
        errors = stage_errors(vlm, source, request, NEW_TOKENS)
        assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(("seed", "name"), list(enumerate(PALIGEMMA)), ids=list(PALIGEMMA))
def test_paligemma(tmp_path: Path, seed: int, name: str):
    first, second, *more = pictures(np.random.default_rng(seed), 5)
    requests = [
        ask("caption", [first]),
        ask("detect red circle ; blue square", [second]),
        ask("how many circles", more[:2]),
        ask("", more[1:2]),
        ask("<loc0012> what?", more[2:]),
    ]
    large = PALIGEMMA[name][1]["image_size"] > 224
    check(tmp_path, seed, PALIGEMMA[name], requests[:2] if large else requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(PERCEPTION_LM)), ids=list(PERCEPTION_LM))
def test_perception_lm(tmp_path: Path, seed: int, name: str):
    random = np.random.default_rng(seed)
    some = pictures(random, 5)
    clip, other = (random.integers(0, 256, (frames, *random.integers(9, 90, 2), 3), np.uint8) for frames in (3, 5))
    conversation = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "video"}, {"type": "image"}]},
    ]
    requests = [
        ask("Describe the picture.", some[:1]),
        ask("Which is larger?", some[1:3]),
        ask(conversation, some[3:], [clip]),
        ask("What happens?", [], [other]),
        ask("How are you?"),
    ]
    check(tmp_path, seed, PERCEPTION_LM[name], requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(KOSMOS2)), ids=list(KOSMOS2))
def test_kosmos2(tmp_path: Path, seed: int, name: str):
    some = pictures(np.random.default_rng(seed), 4)
    requests = [
        ask("<grounding> An image of", some[:1]),
        ask("Question: how many circles? Answer:", some[1:2]),
        ask("<grounding><phrase> it</phrase> and <phrase> the square</phrase> are", some[2:3], (), [[(3, 70)], None]),
        ask("<phrase> a</phrase> is", some[3:4], (), [[(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]]),
        ask("  <grounding> hello there "),
    ]
    check(tmp_path, seed, KOSMOS2[name], requests)
