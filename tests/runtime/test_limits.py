"""What a call may ask for, and calls from several threads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
from helpers import REPOSITORY
from onnx_vlm.runtime import VLM, InputError, Limits, load
from onnx_vlm.runtime.images import reading
from onnx_vlm.runtime.inference.engine import Engine
from onnx_vlm.runtime.inference.host_cache import Cache

PICTURE = shapes.draw(shapes.scene(shapes.HELD_OUT))
Limited = Callable[..., VLM]


@pytest.fixture(scope="module")
def limited(bundle: Path) -> Limited:
    """The model with limits; it is loaded once."""
    vlm = load(bundle, threads=1)

    def limited(**limits: Any) -> VLM:
        vlm.pipeline.limits = Limits(**limits)
        return vlm

    return limited


@pytest.mark.parametrize(
    ("limits", "options", "said"),
    [
        ({"max_prompt_tokens": 10}, {}, "are 16 tokens or more of the prompt, the limit max_prompt_tokens is 10"),
        ({"max_prompt_tokens": 16}, {}, r"the prompt has \d+ tokens, .* limit max_prompt_tokens is 16"),
        ({"max_new_tokens": 5}, {"max_new_tokens": 6}, "max_new_tokens is 6, the limit is 5"),
        ({"max_images": 1}, {"images": [PICTURE] * 2}, "2 images and videos are given, the limit max_images is 1"),
        ({"max_pixels": 99}, {"images": np.zeros((10, 10, 3), np.uint8)}, "10 x 10 pixels; the limit max_pixels is 99"),
        ({"max_memory": 1000}, {}, r"take \d+ bytes, the limit max_memory is 1000"),
        ({}, {"num_beams": 100_000}, "the call has 100000 rows, the limit max_rows is 4096; .*ask for fewer"),
        ({"max_rows": 1 << 50}, {"num_beams": 1 << 40}, r"of 1099511627776 rows .* free to this process are \d+"),
    ],
)
def test_a_limit_is_named(limited: Limited, monkeypatch: pytest.MonkeyPatch, limits: dict, options: dict, said: str):
    monkeypatch.setattr(Engine, "encode", lambda *_: pytest.fail("work is done"))
    with pytest.raises(InputError, match=said):
        limited(**limits).generate("caption", **{"images": PICTURE, **options})


@pytest.mark.parametrize("limits", [{"max_prompt_tokens": 100}, {}])
def test_no_more_images_are_read_than_a_prompt_has_room_for(
    limited: Limited, monkeypatch: pytest.MonkeyPatch, limits: dict
):
    vlm, opened = limited(**limits), []
    read = reading.read
    monkeypatch.setattr(reading, "read", lambda *given: opened.append(1) or read(*given))
    with pytest.raises(InputError, match=r"the images and videos are \d+ tokens or more of the prompt"):
        vlm.generate("caption", [PICTURE] * 300)
    most = limits.get("max_prompt_tokens", vlm.manifest.generation.max_positions)
    assert len(opened) == most // vlm.manifest.tile_tokens + 1


def test_limits_allow_what_is_within_them(limited: Limited):
    whole = limited().generate("caption", PICTURE)
    vlm = limited(max_prompt_tokens=whole.prompt_tokens, max_new_tokens=2, max_images=1)
    answer = vlm.generate("caption", PICTURE)
    assert (answer.token_ids, answer.finish_reason) == (whole.token_ids[:2], "length")
    vlm.generate(["caption"] * 2, [PICTURE] * 2)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_that_cannot_be(field: str):
    for value in (-1, 1.5, "a", True):
        with pytest.raises(InputError, match=f"{field} is {value!r}"):
            Limits(**{field: value})


def test_the_page_on_untrusted_input_tells_every_limit():
    """In order, with defaults that are numbers."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (REPOSITORY / "docs" / "untrusted-input.md").read_text(), re.M)
    units = {"GiB": 1 << 30, "MiB": 1 << 20}
    told = {}
    for name, text in rows:
        number, _, unit = text.replace(",", "").partition(" ")
        told[name] = int(number) * units.get(unit, 1) if number.isdigit() else None
    assert list(told.items()) == [(field.name, field.default) for field in dataclasses.fields(Limits)]


def test_memory_is_known_before_it_is_taken(limited: Limited):
    vlm = limited()
    rows, tokens = 6, 100
    cache = Cache(vlm.manifest.graphs["decoder"], 1, rows, tokens)
    logits = rows * vlm.manifest.vocab * 4
    needed = vlm.pipeline.engine.memory(0, 0, rows, tokens) - sum(buffer.nbytes for buffer in cache._buffers.values())
    assert 4 * logits <= needed <= 8 * logits, "beam search holds them several times"
    assert vlm.manifest.prefill.token > 4 * vlm.manifest.graphs["decoder"].inputs[0].shape[-1]
    assert vlm.pipeline.engine.memory(2, 50, rows, tokens) > vlm.pipeline.engine.memory(1, 50, rows, tokens)
    answer = vlm.generate("caption", PICTURE, max_new_tokens=4, num_beams=2)
    needed = vlm.pipeline.engine.memory(1, answer.prompt_tokens, 2, answer.prompt_tokens + 4)
    assert limited(max_memory=needed).generate("caption", PICTURE, max_new_tokens=4, num_beams=2) is not None
    said = f"2 rows of {answer.prompt_tokens + 4} tokens, the prompts' prefill and the logits take {needed} bytes"
    with pytest.raises(InputError, match=said):
        limited(max_memory=needed - 1).generate("caption", PICTURE, max_new_tokens=4, num_beams=2)


def test_threads_get_the_answers_that_they_get_alone(bundle: Path):
    """Greedy, by beams and drawn, all at once."""
    scenes = [shapes.scene(seed) for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + 4)]
    asked = [
        (question.prompt, shapes.draw(scene), options)
        for scene in scenes
        for question in shapes.questions(scene)[:2]
        for options in ({}, {"num_beams": 2}, {"do_sample": True, "seed": 1, "temperature": 2.0})
    ]

    def answers(vlm: VLM, map: Callable) -> list[list[int]]:
        return list(map(lambda one: vlm.generate(one[0], one[1], **one[2]).token_ids, asked))

    with ThreadPoolExecutor(6) as pool:
        together = answers(load(bundle, threads=1), pool.map)
    assert together == answers(load(bundle, threads=1), map)
