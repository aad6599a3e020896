"""Conversations: answers as of the whole conversation anew, pictures encoded once, the cache of earlier turns kept."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import VLM, Chat, GenerationError, InputError, Limits, load
from onnx_vlm.runtime.inference.engine import Engine
from onnx_vlm.runtime.inference.host_cache import Cache
from onnx_vlm.runtime.inference.host_run import HostRun


class Fed:
    """What goes through the graphs: tiles that are encoded, tokens of each prefill and step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tiles, self.tokens = 0, []
        encode, run_tokens = Engine.encode, HostRun.run_tokens

        def noting_encode(engine: Engine, tiles: np.ndarray) -> np.ndarray:
            self.tiles += len(tiles)
            return encode(engine, tiles)

        def noting_run_tokens(run: HostRun, embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            self.tokens.append(embeds.shape[1])
            return run_tokens(run, embeds, lengths)

        monkeypatch.setattr(Engine, "encode", noting_encode)
        monkeypatch.setattr(HostRun, "run_tokens", noting_run_tokens)


@pytest.fixture(scope="module")
def talking(bundles: Callable[..., Path]) -> VLM:
    """A model with turns, without an embedding cache of its own."""
    return load(bundles("perception_lm"), threads=1, limits=Limits(embedding_memory=0))


SCENE = shapes.scene(shapes.HELD_OUT)
PICTURE = shapes.draw(SCENE)
QUESTIONS = [question.prompt for question in shapes.chat_questions(SCENE)]


def anew(vlm: VLM, chat: Chat, pictures: list) -> list[int]:
    """The last answer of a conversation, asked as a whole."""
    return vlm.generate(chat.messages[:-1], pictures).token_ids


def test_turns_are_answered_as_the_whole_conversation_is(talking: VLM, monkeypatch: pytest.MonkeyPatch):
    chat, fed = talking.chat(PICTURE), Fed(monkeypatch)
    for turn, question in enumerate(QUESTIONS):
        fed.tokens.clear()
        fed.tiles = 0
        answer = chat.ask(question)
        if turn:
            assert fed.tiles == 0, "pictures are encoded once"
            assert fed.tokens[0] < answer.prompt_tokens / 4, "turns before are in the cache"
        else:
            assert fed.tokens[0] == answer.prompt_tokens
        assert answer.token_ids == anew(talking, chat, [PICTURE])
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * len(QUESTIONS)


def test_pictures_may_come_with_later_turns(talking: VLM, monkeypatch: pytest.MonkeyPatch):
    other, fed = shapes.draw(shapes.scene(shapes.HELD_OUT + 1)), Fed(monkeypatch)
    chat = talking.chat()
    chat.ask("How are you?")
    assert chat.ask(QUESTIONS[0], PICTURE).token_ids == anew(talking, chat, [PICTURE])
    before = fed.tiles
    assert chat.ask(QUESTIONS[1], other).token_ids == anew(talking, chat, [PICTURE, other])
    assert fed.tiles > before


def test_beams_and_draws_leave_a_cache_that_is_right(talking: VLM):
    chat = talking.chat(PICTURE)
    for options in ({"num_beams": 3}, {"do_sample": True, "seed": 1, "num_return_sequences": 4}, {"num_beams": 2}, {}):
        answer = chat.ask(QUESTIONS[1], **options)
        again = talking.generate(chat.messages[:-1], PICTURE, **options)
        assert answer.token_ids == again.token_ids
        assert [one.token_ids for one in answer.alternatives] == [one.token_ids for one in again.alternatives]


def test_a_stream_that_is_closed_leaves_the_conversation_as_it_was(talking: VLM):
    chat = talking.chat(PICTURE)
    chat.ask(QUESTIONS[0])
    before = list(chat.messages)
    stream = chat.stream(QUESTIONS[0])
    next(stream)
    with pytest.raises(GenerationError, match="another question is being answered"):
        chat.ask(QUESTIONS[1])
    stream.close()
    assert chat.messages == before
    assert "".join(chat.stream(QUESTIONS[1])) == chat.messages[-1]["content"]
    assert chat.ask(QUESTIONS[2]).token_ids == anew(talking, chat, [PICTURE])


@pytest.mark.parametrize("name", ["kosmos2", "paligemma2"])
def test_models_without_turns_answer_each_question_on_its_own(
    bundles: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch
):
    vlm = load(bundles(name), threads=1)
    asked = {"kosmos2": shapes.grounded_questions, "paligemma2": shapes.questions}[name](SCENE)
    alone = [vlm.generate(question.prompt, PICTURE) for question in asked]
    fed, chat = Fed(monkeypatch), vlm.chat(PICTURE)
    for question, truth in zip(asked, alone):
        answer = chat.ask(question.prompt)
        assert (answer.token_ids, answer.boxes) == (truth.token_ids, truth.boxes)
    assert fed.tiles == 0, "they were in the cache of embeddings"
    prefills = [size for size in fed.tokens if size > 1]
    whole = [truth.prompt_tokens for truth in alone]
    if vlm.manifest.causal:
        assert sum(prefills[1:]) < sum(whole[1:]) / 2, "the picture is in the cache"
    else:
        assert prefills == whole
    with pytest.raises(InputError, match="begin another chat"):
        chat.ask("caption", PICTURE)


@pytest.mark.parametrize("name", ["perception_lm", "kosmos2"])
def test_logits_of_a_prompt_in_two_parts_are_those_of_the_whole(bundles: Callable[..., Path], name: str):
    vlm = load(bundles(name), threads=1)
    engine = vlm.pipeline.engine
    row = engine.embed(vlm.pipeline.encode_prompt(QUESTIONS[0], vlm.pipeline.read_media([PICTURE], [])).prompt)
    whole, _ = engine.start([row], 1)
    for first in (1, len(row) // 2, len(row) - 1):
        for room in (1, len(row)):  # the cache of the first part is too small for both, or not
            _, run = engine.start([row[:first]], room)
            logits, _ = engine.resume(run, first, row[first:], 1, 1)
            assert np.abs(logits - whole).max() < 1e-5 * np.abs(whole).max()


def test_pictures_of_all_turns_count(talking: VLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(talking.pipeline, "limits", Limits(max_images=1))
    chat = talking.chat(PICTURE)
    chat.ask(QUESTIONS[0])
    with pytest.raises(InputError, match="limit max_images is 1"):
        chat.ask(QUESTIONS[1], PICTURE)
    assert chat.ask(QUESTIONS[1]).token_ids == anew(talking, chat, [PICTURE])


def test_a_stream_is_of_one_answer(talking: VLM):
    with pytest.raises(InputError, match="a stream is of one answer"):
        talking.chat(PICTURE).stream(QUESTIONS[0], num_beams=2, num_return_sequences=2)


def test_a_conversation_holds_one_cache_and_frees_it(talking: VLM):
    def caches() -> int:
        gc.collect()
        return sum(type(one) is Cache for one in gc.get_objects())

    before, chat = caches(), talking.chat(PICTURE)
    for question in QUESTIONS[:2]:
        chat.ask(question)
        assert caches() == before + 1
    stream = chat.stream(QUESTIONS[0])
    next(stream)
    stream.close()
    assert caches() == before + 1
    del chat, stream
    assert caches() == before


def test_a_question_is_a_text(talking: VLM):
    with pytest.raises(InputError, match="a question is a text"):
        talking.chat(PICTURE).ask([{"role": "user", "content": "Hello"}])
