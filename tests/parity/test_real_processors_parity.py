"""Random models behind published processors and vocabularies: photographs and prompts as users have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import PHOTOGRAPHS
from onnx_vlm.export import export_model
from onnx_vlm.runtime import load
from onnx_vlm.runtime.inputs import Request
from PIL import Image, ImageOps
from random_models import kosmos2, paligemma, perception_lm
from source import TOLERANCE, ask, assert_same_tokens, open_source, stage_errors

NEW_TOKENS = 16


def check(checkpoint: Path, folder: Path, requests: list[Request]) -> None:
    vlm, source = load(export_model(checkpoint, folder / "bundle"), threads=1), open_source(checkpoint)
    prompts, images, videos = zip(*((request.prompt, request.images, request.videos) for request in requests))
    answers = vlm.generate(prompts, images, videos, max_new_tokens=NEW_TOKENS)
    truths = source.answer(requests, NEW_TOKENS)
    assert len({tuple(truth.ids) for truth in truths}) == len(requests), "the answers tell pictures and prompts apart"
    for request, answer, truth in zip(requests, answers, truths):
        assert_same_tokens(answer.token_ids, truth, f"{request.prompt!r:.60}")
        assert answer.prompt_tokens == source.inputs(request)["input_ids"].shape[1]
    errors = stage_errors(vlm, source, requests[0], NEW_TOKENS)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.fixture
def photographs() -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(path)) for path in PHOTOGRAPHS]


@pytest.mark.needs("processors/paligemma-3b-224")
def test_paligemma(assets: Path, tmp_path: Path, photographs: list[Image.Image]):
    files = assets / "processors" / "paligemma-3b-224"
    checkpoint = paligemma(
        tmp_path / "checkpoint", seed=1, image_size=224, files=files, vocab=257216, positions=2048, hidden=24
    )
    tasks = ("caption en", "answer en Where is the cow standing?", "ocr", "detect cat ; dog", "segment the cup", "")
    requests = [ask(task, [photograph]) for task, photograph in zip(tasks, photographs)]
    check(
        checkpoint, tmp_path, [*requests, ask("answer en There is no snowman in any of the images.", photographs[2:4])]
    )


@pytest.mark.needs("processors/perception-lm-1b")
def test_perception_lm(assets: Path, tmp_path: Path, photographs: list[Image.Image]):
    """Photographs in up to six tiles of 448 pixels, 256 tokens each."""
    files = assets / "processors" / "perception-lm-1b"
    checkpoint = perception_lm(
        tmp_path / "checkpoint", seed=1, files=files, tile=448, patch=14, pooling=2, tiles=6, vocab=128256,
        positions=8192, hidden=24, vision_heads=1,
    )  # fmt: skip
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Qu’est-ce qu’elle fait ?"}]},
    ]
    requests = [
        ask("Describe the bar plot in the image.", photographs[:1]),
        ask(conversation, photographs[1:2]),
        ask("What is the difference between the two images?", photographs[2:4]),
        ask("Who are you?"),
    ]
    check(checkpoint, tmp_path, requests)


@pytest.mark.needs("processors/kosmos-2-patch14-224")
def test_kosmos2(assets: Path, tmp_path: Path, photographs: list[Image.Image]):
    files = assets / "processors" / "kosmos-2-patch14-224"
    checkpoint = kosmos2(tmp_path / "checkpoint", seed=1, files=files, image_size=224, latents=64, vocab=65037)
    requests = [
        ask("<grounding> An image of", photographs[2:3]),
        ask("<grounding> Describe this image in detail:", photographs[1:2]),
        ask("<grounding><phrase> the left dog</phrase>", photographs[6:]),
        ask("<grounding> Question: What is it? Answer:", photographs[4:5]),
        ask("Once upon a time"),
    ]
    check(checkpoint, tmp_path, requests)
