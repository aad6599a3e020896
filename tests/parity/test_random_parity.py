"""Random small models of odd configurations against transformers: every stage, every token, single and ragged batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.runtime import InputError, load
from PIL import Image
from random_models import gemma3, kosmos2, llava, paligemma, perception_lm, smolvlm
from random_parity import RandomParity
from random_rows import GEMMA3, KOSMOS2, LLAVA, PALIGEMMA, PERCEPTION_LM, SMOLVLM
from source import ask, open_source


def pictures(random: np.random.Generator, number: int) -> list[Image.Image]:
    return [Image.fromarray(random.integers(0, 256, (*random.integers(1, 200, 2), 3), np.uint8)) for _ in range(number)]


@pytest.mark.parametrize(("seed", "name"), list(enumerate(PALIGEMMA)), ids=list(PALIGEMMA))
def test_paligemma(random_parity: RandomParity, seed: int, name: str):
    first, second, *more = pictures(np.random.default_rng(seed), 5)
    requests = [
        ask("caption", [first]),
        ask("detect red circle ; blue square", [second]),
        ask("how many circles", more[:2]),
        ask("", more[1:2]),
        ask("<loc0012> what?", more[2:]),
    ]
    large = PALIGEMMA[name][1]["image_size"] > 224
    random_parity.check(seed, PALIGEMMA[name], requests[:2] if large else requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(PERCEPTION_LM)), ids=list(PERCEPTION_LM))
def test_perception_lm(random_parity: RandomParity, seed: int, name: str):
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
    random_parity.check(seed, PERCEPTION_LM[name], requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(GEMMA3)), ids=list(GEMMA3))
def test_gemma3(random_parity: RandomParity, seed: int, name: str):
    some = pictures(np.random.default_rng(seed), 6)
    conversation = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "image"}]},
    ]
    requests = [
        ask("Describe the picture.", some[:1]),
        ask("Which is larger?", some[1:3]),
        ask(conversation, some[3:5]),
        ask("", some[5:]),
        ask("How are you?"),
    ]
    large = GEMMA3[name][1].get("side", 0) > 8
    random_parity.check(seed, GEMMA3[name], requests[:2] if large else requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(KOSMOS2)), ids=list(KOSMOS2))
def test_kosmos2(random_parity: RandomParity, seed: int, name: str):
    some = pictures(np.random.default_rng(seed), 4)
    requests = [
        ask("<grounding> An image of", some[:1]),
        ask("Question: how many circles? Answer:", some[1:2]),
        ask("<grounding><phrase> it</phrase> and <phrase> the square</phrase> are", some[2:3], (), [[(3, 70)], None]),
        ask("<phrase> a</phrase> is", some[3:4], (), [[(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]]),
        ask("  <grounding> hello there "),
    ]
    random_parity.check(seed, KOSMOS2[name], requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(SMOLVLM)), ids=list(SMOLVLM))
def test_smolvlm(random_parity: RandomParity, seed: int, name: str):
    some = pictures(np.random.default_rng(seed), 5)
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "You are brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
        {"role": "user", "content": [{"type": "text", "text": "And this? "}, {"type": "image"}]},
    ]
    requests = [
        ask("Describe the picture.", some[:1]),
        ask("Which is larger?", some[1:3]),
        ask(conversation, some[3:]),
        ask("How are you?"),
    ]
    if not SMOLVLM[name][1].get("idefics"):  # Idefics3 has no processor of videos
        clip = np.random.default_rng(seed).integers(0, 256, (5, 33, 70, 3), np.uint8)
        requests.insert(1, ask("What happens?", [], [clip]))
    random_parity.check(seed, SMOLVLM[name], requests)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(LLAVA)), ids=list(LLAVA))
def test_llava(random_parity: RandomParity, seed: int, name: str):
    some = pictures(np.random.default_rng(seed), 5)
    conversation = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "image"}]},
    ]
    requests = [
        ask("Describe the picture.", some[:1]),
        ask("Which is larger?", some[1:3]),
        ask(conversation, some[3:]),
        ask("How are you?"),
    ]
    random_parity.check(seed, LLAVA[name], requests)


@pytest.mark.parametrize(
    ("make", "options", "prompt"),
    [
        (paligemma, {"image_size": 28, "positions": 32, "sliding_window": 8}, "caption"),
        (perception_lm, {"positions": 64}, "What is it?"),
        (kosmos2, {"max_position_embeddings": 32}, "<grounding> An image of"),
        (smolvlm, {"positions": 64}, "What is it?"),
        (gemma3, {"positions": 48}, "What is it?"),
        (llava, {"positions": 64}, "What is it?"),
    ],
    ids=["paligemma", "perception_lm", "kosmos2", "smolvlm", "gemma3", "llava"],
)
def test_an_answer_may_fill_the_last_position(
    tmp_path: Path, judge: Judge, threads: int, make: Callable[..., Path], options: dict[str, Any], prompt: str
):
    checkpoint = make(tmp_path / "checkpoint", seed=3, **options)
    vlm = load(export_model(checkpoint, tmp_path / "bundle", prove=False), threads=threads)
    source = open_source(checkpoint)
    request = ask(prompt, pictures(np.random.default_rng(3), 1))
    room = vlm.manifest.generation.max_positions - source.inputs(request)["input_ids"].shape[1]
    (truth,) = source.answer([request], room)
    assert len(truth.ids) == room > 8
    judge.tokens(
        source, vlm.generate(prompt, request.images, max_new_tokens=room).token_ids, truth, "the last position"
    )
    with pytest.raises(InputError, match="positions"):
        vlm.generate(prompt, request.images, max_new_tokens=room + 1)
