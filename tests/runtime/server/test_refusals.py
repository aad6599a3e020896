"""What is refused, and with which status; every error is OpenAI's object, and contents reach no log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from onnx_vlm.runtime.server import guard
from onnx_vlm.runtime.server.app import Access
from onnx_vlm.runtime.server.models import Models
from onnx_vlm.runtime.server.protocol import ChatRequest
from PIL import Image
from server_helpers import Running, asking, data_uri, image_part, png, serving, wait_for

CHAT = "/v1/chat/completions"
LARGE = png(Image.fromarray(np.zeros((1001, 1000, 3), np.uint8)))
HELLO = {"model": "perception_lm", "messages": [{"role": "user", "content": "Hello"}]}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"model": "other"}, 404, "model", "'other'.*paligemma2, perception_lm, kosmos2"),
        ({"model": None}, 400, "model", "missing"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "Hello"}, 400, "messages", "array"),
        ({"messages": [{"role": "tool", "content": "1"}]}, 400, "messages.0.role", "user"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
        ({"messages": asking("x", {"type": "input_audio"})}, 400, "messages.0.content.0", "input_audio"),
        ({"messages": asking("x", {"type": "image", "path": "/etc/passwd"})}, 400, "messages.0.content.0", "image_url"),
        ({"messages": asking("x", image_part("/etc/passwd"))}, 400, "messages.0.content.0", "data URI"),
        ({"messages": asking("x", image_part("file:///etc/passwd"))}, 400, "messages.0.content.0", "data URI"),
        ({"messages": asking("x", image_part("http://127.0.0.1/"))}, 400, "messages.0.content.0", "data URI"),
        ({"messages": asking("x", image_part("https://a.example/"))}, 400, "messages.0.content.0", "may not be asked"),
        ({"messages": asking("x", image_part("data:image/png,abc"))}, 400, "messages.0.content.0", "base64"),
        ({"messages": asking("x", image_part("data:image/png;base64,###"))}, 400, "messages.0.content.0", "base64"),
        ({"messages": asking("x", image_part("data:image/png;base64,"))}, 400, "messages.0.content.0", "empty"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        ({"audio": {"voice": "x"}}, 400, "audio", "not supported"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
        ({"max_new_tokens": 5}, 400, "max_new_tokens", "max_completion_tokens"),
        ({"suppress_tokens": [5]}, 400, "suppress_tokens", "leave it out"),
        ({"max_tokens": 0}, 400, None, "max_new_tokens is 0"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", "differ"),
        ({"temperature": "hot"}, 400, "temperature", "number"),
        ({"temperature": -1}, 400, None, "temperature is -1"),
        ({"temperature": 0, "n": 2}, 400, "n", "equal"),
        ({"stop": [""]}, 400, None, "stop"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, 400, None, "top_logprobs is 21"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream: true"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format", "json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "constrain": "boxes"}, 400, "constrain", "give one"),
        ({"constrain": "verse"}, 400, None, "constrain"),
        ({"n": 5, "temperature": 1}, 400, None, "5 rows.*4"),
        ({"max_tokens": 5000}, 422, None, "positions"),
        ({"messages": asking("x " * 17000)}, 422, "messages", "characters"),
        ({"messages": asking("x " * 1100)}, 422, None, "positions"),
        ({"messages": asking("x", image_part(data_uri(b"no image")))}, 422, None, "not an image"),
        ({"messages": asking("x", image_part(data_uri(LARGE)))}, 422, None, "max_pixels is 1000000"),
        ({"model": "kosmos2", "messages": asking("x", *[image_part()] * 2)}, 422, None, "at most 1 image"),
        ({"model": "paligemma2", "messages": asking("caption")}, 422, None, "at least one"),
        ({"bboxes": [[1, 2]]}, 422, None, "takes no bboxes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_told_what_is_wrong(
    running: Running, fields: dict[str, Any], status: int, param: str | None, words: str
):
    for stream in (False, True) if "stream_options" not in fields else (False,):
        with running.http() as client:
            error = error_of(client.post(CHAT, json=HELLO | fields | {"stream": stream}), status)
        assert error["param"] == param
        assert re.search(words, error["message"]), error["message"]
        assert error["type"] == "invalid_request_error"
    running.until_idle()


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "frequency_penalty": 0.0, "logit_bias": {}, "modalities": ["text"]},
        {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True, "unheard": [1]},
        {"stop": [], "top_p": 1, "n": 1, "seed": None, "response_format": {"type": "text"}},
    ],
)
def test_what_asks_for_nothing_is_let_be(running: Running, fields: dict[str, Any]):
    with running.http() as client:
        plain = client.post(CHAT, json=HELLO).json()
        answer = client.post(CHAT, json=HELLO | fields).json()
    assert answer["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]


ODD = [True, -1, 0.5, 10**30, "", "\x00", [], [None], {"type": "object"}, [[0.1, 0.1, 2, 2]]]


@pytest.mark.parametrize("field", ChatRequest.model_fields)
def test_no_value_of_a_field_is_an_unexpected_error(running: Running, field: str):
    with running.http() as client:
        for value in ODD:
            answer = client.post(CHAT, json=HELLO | {"max_tokens": 2, field: value})
            assert answer.status_code in (200, 400, 404, 422), (value, answer.text)
            if answer.status_code != 200:
                error_of(answer, answer.status_code)
    running.until_idle()


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be short."}, *asking("caption", image_part())],
        [*asking("caption", image_part()), {"role": "assistant", "content": "a"}, *asking("caption", image_part())],
        [{"role": "assistant", "content": "a"}],
    ],
)
def test_turns_are_not_dropped_in_silence(running: Running, messages: list[dict[str, Any]]):
    with running.http() as client:
        error = error_of(client.post(CHAT, json={"model": "paligemma2", "messages": messages}), 400)
    assert error["code"] == "conversation_not_supported"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": ""}, 415),
        (b" " * (20 << 20) + b" ", {}, 413),
    ],
    ids=["cut off", "no object", "no UTF-8", "deep", "text", "no type", "too long"],
)
def test_a_broken_body_is_refused(running: Running, body: bytes, headers: dict[str, str], status: int):
    with running.http(headers={"Content-Type": "application/json"} | headers) as client:
        error_of(client.post(CHAT, content=body), status)
        error_of(client.post(CHAT, content=iter([body])), status)  # chunked: its length is not announced
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/other", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/page/../conftest.py", 404),
        ("GET", "/page/%2e%2e/app.py", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
    ],
)
def test_other_paths_and_methods_are_refused(running: Running, method: str, path: str, status: int):
    with running.http() as client:
        error_of(client.request(method, path, json={}), status)


def test_the_client_has_an_exception_for_each(running: Running):
    client = running.openai()
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="other", messages=asking("x"))
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="perception_lm", messages=asking("x"), tools=[{"type": "function"}])
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="perception_lm", messages=asking("x", image_part(data_uri(b"x"))))


def test_a_key_is_asked_for_but_for_health_and_files(models: Models):
    with serving(models, Access(api_key="s3cret")) as server:
        with server.http() as client:
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", CHAT), ("GET", "/other")):
                response = client.request(method, path, json={})
                assert error_of(response, 401)["type"] == "authentication_error"
                assert response.headers["www-authenticate"] == "Bearer"
            for path in ("/health", "/docs", "/openapi.json", "/", "/page/main.js"):
                assert client.get(path).status_code == 200
            for wrong in ("Bearer s3cre", "Bearer s3cret1", "s3cret", "Basic s3cret", "Bearer", "Bearer é"):
                error_of(client.get("/v1/models", headers={"Authorization": wrong.encode("latin-1")}), 401)
        with pytest.raises(openai.AuthenticationError):
            server.openai(api_key="other").models.list()
        assert len(list(server.openai(api_key="s3cret").models.list())) == 3


def test_another_name_of_the_host_is_refused(running: Running):
    with running.http() as client:
        assert error_of(client.get("/health", headers={"Host": "evil.example:8000"}), 421)["code"] == "bad_host"
        for name in ("localhost", "127.0.0.1:80", "LOCALHOST:1", "[::1]:5"):
            assert client.get("/health", headers={"Host": name}).status_code == 200


def test_other_origins_are_let_in_only_if_named(models: Models):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving(models) as server, server.http() as client:
        assert client.options(CHAT, headers=asked).status_code == 405
        assert not [name for name in client.get("/health", headers=asked).headers if name.startswith("access-control")]
    access = Access(api_key="k", cors_origins=["https://a.example"])
    with serving(models, access) as server, server.http() as client:
        assert client.options(CHAT, headers=asked).headers["access-control-allow-origin"] == "https://a.example"
        refused = client.get("/v1/models", headers=asked)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        other = client.options(CHAT, headers=asked | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_pages_may_load_nothing_from_elsewhere(running: Running):
    with running.http() as client:
        for path in ("/", "/page/main.js", "/docs", "/openapi.json"):
            response = client.get(path)
            assert response.status_code == 200
            assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert response.headers["x-content-type-options"] == "nosniff"
        docs = client.get("/docs").text
        assert "://" not in docs
        assert "<script" not in docs
        schema = client.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "n", "response_format", "constrain", "bboxes"} <= fields.keys()
    assert all(f">{name}<" in docs for name in fields)


def test_a_request_keeps_its_id_and_logs_no_contents(running: Running, logged_lines: list[str]):
    secret = "the-secret-words"
    with running.http() as client:
        answer = client.post(CHAT, json=HELLO | {"max_tokens": 2}, headers={"X-Request-Id": "my.id-1"})
        assert answer.headers["x-request-id"] == "my.id-1"
        assert answer.json()["id"] == "chatcmpl-my.id-1"
        messages = asking(secret, image_part(data_uri(secret.encode())))
        broken = client.post(
            CHAT, json={"model": "perception_lm", "messages": messages}, headers={"X-Request-Id": "a b"}
        )
        assert len(broken.headers["x-request-id"]) == 16
        client.get(f"/{secret}")
    wait_for(lambda: len(logged_lines) >= 3)
    logged = "\n".join(logged_lines)
    assert "my.id-1 POST /v1/chat/completions 200" in logged
    assert f"{broken.headers['x-request-id']} POST /v1/chat/completions 422" in logged
    assert secret not in logged


@pytest.fixture
def logged_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines of the server's log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(guard.log, "handlers", [handler])
    guard.log.setLevel(logging.INFO)
    yield lines
    guard.log.setLevel(logging.NOTSET)


def test_an_unexpected_error_is_logged_without_its_message(
    running: Running, logged_lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyError("the-secret-words")

    monkeypatch.setattr(running.models.get("perception_lm").scheduler, "submit", fail)
    with running.http() as client:
        error = error_of(client.post(CHAT, json=HELLO), 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    wait_for(lambda: len(logged_lines) >= 2)
    assert "unexpected KeyError" in logged_lines[0]
    assert "the-secret-words" not in "".join([*logged_lines, json.dumps(error)])
