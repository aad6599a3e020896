"""Chat completions as OpenAI's own client asks for them: the answers are those of `generate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest
import shapes
from helpers import write_film
from server_helpers import SCENE, Running, asking, data_uri, image_part


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return running.openai()


def vlm_of(running: Running, name: str):
    return running.models.get(name).vlm


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("paligemma2", f"detect {SCENE.things[0].name}"),
        ("perception_lm", shapes.chat_questions(SCENE)[0].prompt),
        ("kosmos2", "<grounding> An image of"),
    ],
)
def test_an_answer_is_that_of_generate(running: Running, client: openai.OpenAI, name: str, prompt: str):
    expected = vlm_of(running, name).generate(prompt, shapes.draw(SCENE))
    done = client.chat.completions.create(model=name, messages=asking(prompt, image_part()), temperature=0)
    (choice,) = done.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finish_reason
    assert done.usage.prompt_tokens == expected.prompt_tokens
    assert done.usage.completion_tokens == len(expected.token_ids)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert (done.object, done.model) == ("chat.completion", name)
    more = choice.message.model_extra["onnx_vlm"]
    assert more["boxes"] == [vars(box) for box in expected.boxes]
    assert more["caption"] == expected.caption
    assert [entity["label"] for entity in more["entities"]] == [entity.label for entity in expected.entities]
    assert {"preprocess", "vision", "prefill", "decode"} <= more["timings"].keys()


@pytest.mark.parametrize("name", ["paligemma2", "perception_lm", "kosmos2"])
def test_the_chunks_of_a_stream_are_the_answer(running: Running, client: openai.OpenAI, name: str):
    prompt = {"paligemma2": "caption", "kosmos2": "<grounding> An image of"}.get(name, "Describe the image.")
    expected = vlm_of(running, name).generate(prompt, shapes.draw(SCENE))
    asked = {"model": name, "messages": asking(prompt, image_part()), "temperature": 0}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    *parts, last, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parts) == expected.text
    assert [chunk.choices[0].delta.role for chunk in parts] == ["assistant"] + [None] * (len(parts) - 1)
    assert {chunk.choices[0].finish_reason for chunk in parts} == {None}
    assert last.choices[0].finish_reason == expected.finish_reason
    assert last.choices[0].delta.model_extra["onnx_vlm"]["boxes"] == [vars(box) for box in expected.boxes]
    assert usage.choices == []
    assert usage.usage.completion_tokens == len(expected.token_ids)
    if name == "paligemma2":
        assert len(parts) > 2


def test_a_conversation_has_turns_and_images(running: Running, client: openai.OpenAI):
    first, second = shapes.chat_questions(SCENE)[:2]
    messages = asking(first.prompt, image_part())
    messages += [{"role": "assistant", "content": first.answer}, {"role": "user", "content": second.prompt}]
    done = client.chat.completions.create(model="perception_lm", messages=messages, temperature=0)
    assert done.choices[0].message.content == second.answer


def test_a_video_is_taken(running: Running, client: openai.OpenAI, tmp_path: Path):
    film = write_film(tmp_path / "film.mp4")
    part = {"type": "video_url", "video_url": {"url": data_uri(film.read_bytes(), "video/mp4")}}
    messages = asking("Describe the video.", part)
    done = client.chat.completions.create(model="perception_lm", messages=messages, temperature=0, max_tokens=8)
    expected = vlm_of(running, "perception_lm").generate("Describe the video.", videos=film, max_new_tokens=8)
    assert done.choices[0].message.content == expected.text


def test_boxes_are_taken_for_phrases(client: openai.OpenAI):
    thing = SCENE.things[0]
    box = [edge / shapes.GRID for edge in (thing.left, thing.top, thing.right, thing.bottom)]
    messages = asking("<grounding><phrase> it</phrase> is", image_part())
    extra = {"bboxes": [box], "constrain": "boxes"}
    done = client.chat.completions.create(model="kosmos2", messages=messages, temperature=0, extra_body=extra)
    assert done.choices[0].message.model_extra["onnx_vlm"]["entities"][0]["label"] == "it"


def test_several_answers_are_drawn_by_their_seed(running: Running, client: openai.OpenAI):
    asked = {"model": "perception_lm", "messages": asking("Describe the image.", image_part()), "n": 3, "seed": 5}
    options = {"temperature": 2.0, "max_completion_tokens": 6}
    done = client.chat.completions.create(**asked, **options)
    texts = [choice.message.content for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, **options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    expected = vlm_of(running, "perception_lm").generate(
        "Describe the image.",
        shapes.draw(SCENE),
        num_return_sequences=3,
        seed=5,
        do_sample=True,
        temperature=2.0,
        max_new_tokens=6,
    )
    assert texts == [expected.text, *(one.text for one in expected.alternatives)]


def test_beams_tell_their_score(running: Running, client: openai.OpenAI):
    messages = asking("caption", image_part())
    done = client.chat.completions.create(model="paligemma2", messages=messages, extra_body={"num_beams": 2})
    expected = vlm_of(running, "paligemma2").generate("caption", shapes.draw(SCENE), num_beams=2)
    assert done.choices[0].message.content == expected.text
    assert done.choices[0].message.model_extra["onnx_vlm"]["score"] == pytest.approx(expected.score, abs=1e-3)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_logprobs_are_of_each_token(running: Running, client: openai.OpenAI, is_streamed: bool):
    asked: dict[str, Any] = {"model": "perception_lm", "messages": asking("Describe the image.", image_part())}
    asked |= {"temperature": 0, "logprobs": True, "top_logprobs": 2}
    done = client.chat.completions.create(**asked, stream=is_streamed)
    if is_streamed:
        chunks = [chunk.choices[0] for chunk in done]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    else:
        text, tokens = done.choices[0].message.content, done.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == text
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        assert token.logprob <= 0
        assert [token.token, token.logprob] == [token.top_logprobs[0].token, token.top_logprobs[0].logprob]
        assert len(token.top_logprobs) == 2
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-5


def test_an_answer_ends_before_a_stop(running: Running, client: openai.OpenAI):
    whole = vlm_of(running, "perception_lm").generate("Describe the image.", shapes.draw(SCENE)).text
    stop = whole.split()[2]
    messages = asking("Describe the image.", image_part())
    done = client.chat.completions.create(model="perception_lm", messages=messages, temperature=0, stop=[stop, "#"])
    assert done.choices[0].message.content == whole[: whole.index(stop)]
    assert done.choices[0].finish_reason == "stop"


def test_an_answer_is_cut(client: openai.OpenAI):
    messages = asking("Describe the image.", image_part())
    done = client.chat.completions.create(model="perception_lm", messages=messages, max_tokens=2, temperature=0)
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("length", 2)


def test_boxes_come_as_they_are_found(running: Running, client: openai.OpenAI):
    prompt = f"detect {SCENE.things[0].name}"
    expected = vlm_of(running, "paligemma2").generate(prompt, shapes.draw(SCENE)).boxes
    asked = {"model": "paligemma2", "messages": asking(prompt, image_part()), "temperature": 0}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    found = [delta.model_extra["onnx_vlm"]["boxes"] for delta in deltas if "onnx_vlm" in delta.model_extra]
    assert [len(boxes) for boxes in found] == sorted(len(boxes) for boxes in found)
    assert len(found) > 1
    assert found[0]
    assert found[-1] == [vars(box) for box in expected]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_obeys_a_schema(client: openai.OpenAI, is_streamed: bool):
    schema = {"type": "object", "properties": {"shape": {"enum": ["circle", "square"]}}, "required": ["shape"]}
    schema["additionalProperties"] = False
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    asked: dict[str, Any] = {"model": "perception_lm", "messages": asking("Which shape?", image_part())}
    done = client.chat.completions.create(**asked, temperature=0, response_format=wanted, stream=is_streamed)
    if is_streamed:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in done)
    else:
        text = done.choices[0].message.content
    assert json.loads(text)["shape"] in ("circle", "square")


def test_an_answer_may_be_any_json_object(client: openai.OpenAI):
    asked: dict[str, Any] = {"model": "perception_lm", "messages": asking("Which shape?", image_part())}
    asked |= {"temperature": 0, "max_tokens": 40, "response_format": {"type": "json_object"}}
    assert client.chat.completions.create(**asked).choices[0].message.content.lstrip().startswith("{")


def test_candidates_are_scored(running: Running):
    candidates = ["red circle", "blue square"]
    body = {"model": "paligemma2", "messages": asking("caption", image_part()), "candidates": candidates}
    with running.http() as client:
        answer = client.post("/v1/score", json=body).json()
    expected = vlm_of(running, "paligemma2").score("caption", shapes.draw(SCENE), candidates)
    assert [score["text"] for score in answer["scores"]] == candidates
    for score, truth in zip(answer["scores"], expected):
        assert score["token_ids"] == truth.token_ids
        assert score["log_probability"] == pytest.approx(truth.log_probability, abs=1e-3)


def test_models_tell_what_they_can_do(client: openai.OpenAI):
    listed = {model.id: model for model in client.models.list()}
    assert all(client.models.retrieve(name) == model for name, model in listed.items())
    facts = {name: model.model_extra["onnx_vlm"] for name, model in listed.items()}
    assert facts["paligemma2"]["tasks"] == ["answer", "caption", "detect"]
    assert facts["paligemma2"]["takes"] == {
        "images": [1, None],
        "videos": False,
        "conversation": False,
        "bboxes": False,
    }
    assert facts["perception_lm"]["tasks"] == ["chat", "answer", "caption"]
    assert facts["perception_lm"]["takes"] == {
        "images": [0, None],
        "videos": True,
        "conversation": True,
        "bboxes": False,
    }
    assert facts["kosmos2"]["tasks"] == ["answer", "caption", "ground"]
    assert facts["kosmos2"]["takes"]["images"] == [0, 1]
    assert facts["kosmos2"]["takes"]["bboxes"]
    assert [facts[name]["boxes"] for name in ("paligemma2", "perception_lm", "kosmos2")] == [
        "locations",
        None,
        "patches",
    ]
