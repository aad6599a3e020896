"""Random models with images and tiles of published sizes: photographs and prompts as users have them.

Each model has the vocabulary of a trained checkpoint, and once more a published one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKPOINTS, PHOTOGRAPHS
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.runtime import load
from onnx_vlm.runtime.inputs import Request
from PIL import Image, ImageOps
from random_models import kosmos2, paligemma, perception_lm
from source import TOLERANCE, ask, open_source, stage_errors

NEW_TOKENS = 16


def vocabularies(trained: str, published: str, size: int) -> Any:
    """Run a test with the vocabulary of a trained checkpoint, and with a published one of this size."""
    folder = f"processors/{published}"
    with_published = pytest.param({"files": folder, "vocab": size}, marks=pytest.mark.needs(folder), id="published")
    with_trained = pytest.param({"files": CHECKPOINTS / trained}, id="trained")
    return pytest.mark.parametrize("vocabulary", [with_trained, with_published], indirect=True)


@pytest.fixture
def vocabulary(request: pytest.FixtureRequest, assets: Path) -> dict[str, Any]:
    """Arguments of a random model: the folder of its processor, and the size of a published vocabulary."""
    return request.param | {"files": assets / request.param["files"]}  # a trained checkpoint's path is absolute


def check(checkpoint: Path, folder: Path, requests: list[Request], judge: Judge) -> None:
    vlm, source = load(export_model(checkpoint, folder / "bundle"), threads=1), open_source(checkpoint)
    prompts, images, videos = zip(*((request.prompt, request.images, request.videos) for request in requests))
    answers = vlm.generate(prompts, images, videos, max_new_tokens=NEW_TOKENS)
    truths = source.answer(requests, NEW_TOKENS)
    assert len({tuple(truth.ids) for truth in truths}) == len(requests), "the answers tell pictures and prompts apart"
    for request, answer, truth in zip(requests, answers, truths):
        judge.tokens(source, answer.token_ids, truth, f"{request.prompt!r:.60}")
        assert answer.prompt_tokens == source.inputs(request)["input_ids"].shape[1]
    errors = stage_errors(vlm, source, requests[0], NEW_TOKENS)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.fixture
def photographs() -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(path)) for path in PHOTOGRAPHS]


@vocabularies("paligemma2", "paligemma-3b-224", 257216)
def test_paligemma(vocabulary: dict[str, Any], tmp_path: Path, photographs: list[Image.Image], judge: Judge):
    checkpoint = paligemma(tmp_path / "checkpoint", seed=1, image_size=224, positions=2048, hidden=24, **vocabulary)
    tasks = ("caption en", "answer en Where is the cow standing?", "ocr", "detect cat ; dog", "segment the cup", "")
    requests = [ask(task, [photograph]) for task, photograph in zip(tasks, photographs)]
    requests.append(ask("answer en There is no snowman in any of the images.", photographs[2:4]))
    check(checkpoint, tmp_path, requests, judge)


@vocabularies("perception_lm", "perception-lm-1b", 128256)
def test_perception_lm(vocabulary: dict[str, Any], tmp_path: Path, photographs: list[Image.Image], judge: Judge):
    """Photographs in up to six tiles of 448 pixels, 256 tokens each."""
    checkpoint = perception_lm(
        tmp_path / "checkpoint",
        seed=1,
        tile=448,
        patch=14,
        pooling=2,
        tiles=6,
        positions=8192,
        hidden=24,
        vision_heads=1,
        **vocabulary,
    )
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Qu’est-ce qu’elle fait ?"}]},
    ]
    requests = [
        ask("Describe the bar plot in the image.", [photographs[0].resize((1200, 800))]),
        ask(conversation, photographs[1:2]),
        ask("What is the difference between the two images?", photographs[2:4]),
        ask("Who are you?"),
    ]
    check(checkpoint, tmp_path, requests, judge)


@vocabularies("kosmos2", "kosmos-2-patch14-224", 65037)
def test_kosmos2(vocabulary: dict[str, Any], tmp_path: Path, photographs: list[Image.Image], judge: Judge):
    checkpoint = kosmos2(tmp_path / "checkpoint", seed=1, image_size=224, latents=64, **vocabulary)
    requests = [
        ask("<grounding> An image of", photographs[2:3]),
        ask("<grounding> Describe this image in detail:", photographs[1:2]),
        ask("<grounding><phrase> the left dog</phrase>", photographs[6:]),
        ask("<grounding> Question: What is it? Answer:", photographs[4:5]),
        ask("Once upon a time"),
    ]
    check(checkpoint, tmp_path, requests, judge)
