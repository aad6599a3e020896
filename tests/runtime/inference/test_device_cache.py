"""A batch whose cache and logits are on a device, run where the device is the CPU: the same tokens, moved nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from on_device import on_device
from onnx_vlm.runtime import VLM, GenerationError, load
from onnx_vlm.runtime.inference.device_cache import SMALLEST_BUCKET, Buffers, bucket
from onnx_vlm.runtime.inference.device_logits import DeviceLogits

PROMPTS = ["caption", "detect red circle", "how many circles"]


@pytest.fixture(scope="module", params=[False, True], ids=["bound", "captured"])
def pair(request: pytest.FixtureRequest, bundles: Callable[..., Path]) -> tuple[VLM, VLM]:
    """A model on the host and on a device."""
    folder = bundles("paligemma2")
    return load(folder, provider="cpu", threads=1), on_device(folder, request.param)


@pytest.fixture(scope="module")
def pictures() -> list:
    return [shapes.draw(shapes.scene(shapes.HELD_OUT + index)) for index in range(3)]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "seed": 1, "temperature": 1.5}], ids=str)
def test_tokens_are_those_of_the_host(pair: tuple[VLM, VLM], pictures: list, options: dict):
    host, device = (vlm.generate(PROMPTS, pictures, max_new_tokens=12, **options) for vlm in pair)
    assert [answer.token_ids for answer in device] == [answer.token_ids for answer in host]


def test_of_greedy_decoding_only_ids_leave_the_device(
    pair: tuple[VLM, VLM], pictures: list, monkeypatch: pytest.MonkeyPatch
):
    host, device = pair
    expected = [answer.token_ids for answer in host.generate(PROMPTS, pictures)]
    assert len({len(ids) for ids in expected}) > 1, "rows leave the batch, others move into their places"
    monkeypatch.setattr(DeviceLogits, "__array__", None)
    for _ in range(2):  # the second time with the buffers of the first
        assert [answer.token_ids for answer in device.generate(PROMPTS, pictures)] == expected


def test_a_conversation_and_scores_are_those_of_the_host(bundles: Callable[..., Path], pictures: list):
    folder, told = bundles("perception_lm"), []
    for vlm in (load(folder, provider="cpu", threads=1), on_device(folder, True)):
        chat = vlm.chat(pictures[0])
        turns = [chat.ask(question, max_new_tokens=8).token_ids for question in ("Describe it.", "How many?", "Why?")]
        longer = chat.ask("And now?", max_new_tokens=300).token_ids  # needs larger buffers
        scores = [one.log_probability for one in vlm.score("How many?", pictures[0], ["one", "two circles"])]
        told.append((turns, longer, np.round(scores, 4).tolist()))
    assert told[0] == told[1]


def test_buffers_wait_for_the_next_batch_like_theirs(bundle: Path):
    engine = on_device(bundle, False).pipeline.engine
    hidden = engine.embed_tokens(np.zeros(1, np.int64)).shape[-1]
    prompts = [np.zeros((3, hidden), np.float32)] * 2
    _, run = engine.start(prompts, 97, copies=2)
    first = run.buffers
    assert first.size == (4, SMALLEST_BUCKET)
    del run
    _, run = engine.start(prompts[:1], 197, copies=4)
    assert run.buffers is first
    run = run.truncate(2, 4, 200)
    assert run.buffers is first
    assert engine.start(prompts, 97, copies=2)[1].buffers is not first, "they are in use"
    with pytest.raises(GenerationError, match="holds 256 tokens"):
        run.run_tokens(np.zeros((1, 300, hidden), np.float32), np.array([300]))


def test_rows_move_on_the_device(bundle: Path):
    buffers = Buffers(on_device(bundle, False).pipeline.engine._device, 3, 4)
    values = [np.random.default_rng(0).normal(size=one.shape()).astype(np.float32) for one in buffers._sets[0]]
    buffers._sets[0] = [buffers.device.put(value) for value in values]
    buffers.keep(np.arange(2))
    assert len(buffers._sets) == 1, "rows that stay are not touched"
    buffers.keep(np.array([2, 0, 2]))
    for moved, value in zip(buffers._sets[buffers._current], values):
        assert np.array_equal(moved.numpy(), value[[2, 0, 2]])


def test_capacities_are_few():
    assert [bucket(tokens, 8192) for tokens in (1, 256, 257, 3000, 8192)] == [256, 256, 512, 4096, 8192]
    assert (bucket(600, 700), bucket(700, 700)) == (700, 700), "not beyond the positions of the model"
