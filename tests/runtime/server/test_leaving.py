"""Clients that leave, stall, crowd in or wait too long: rows are freed, and others are answered."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from onnx_vlm.runtime.scheduling.batch import Batch
from onnx_vlm.runtime.server import app, process
from onnx_vlm.runtime.server.app import Access
from onnx_vlm.runtime.server.body import Bodies
from onnx_vlm.runtime.server.models import Models
from server_helpers import Running, asking, image_part, load_models, serving, wait_for

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "perception_lm", "messages": [{"role": "user", "content": "Hello"}]}
#: An answer of 900 tokens, which takes seconds.
LONG = HELLO | {"min_new_tokens": 900, "max_tokens": 900, "temperature": 0}


@pytest.fixture(scope="module")
def narrow(bundles: Callable[..., Path]) -> Iterator[Models]:
    """A model that answers one request at a time, while one may wait."""
    models = load_models({"perception_lm": bundles("perception_lm")}, max_rows=1, max_queue=1)
    yield models
    models.close(drain=False)


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes 5 ms more, so that long answers take seconds on any machine."""
    advance = Batch.advance

    def advance_slowly(batch: Batch) -> None:
        time.sleep(0.005)
        advance(batch)

    monkeypatch.setattr(Batch, "advance", advance_slowly)


def head(length: int) -> bytes:
    """The head of a request whose body has `length` bytes."""
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}"
    return f"POST {CHAT} HTTP/1.1\r\n{fields}\r\n\r\n".encode()


def running_and_queued(models: Models) -> tuple[int, int]:
    """How many requests its models answer, and how many wait."""
    states = [model.scheduler.state() for model in models]
    return sum(state.running for state in states), sum(state.queued for state in states)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_frees_its_row(narrow: Models, slow_steps: None, is_streamed: bool):
    with serving(narrow) as server:
        before = sum(model.scheduler.state().tokens for model in narrow)
        with socket.create_connection(server.address) as connection:
            body = json.dumps(LONG | {"stream": is_streamed}).encode()
            connection.sendall(head(len(body)) + body)
            wait_for(lambda: sum(model.scheduler.state().tokens for model in narrow) > before + 3)
        server.until_idle()
        assert sum(model.scheduler.state().tokens for model in narrow) < before + 900
        with server.http() as client:
            assert client.post(CHAT, json=HELLO | {"max_tokens": 2}).status_code == 200
            assert 'status="499"' in client.get("/metrics").text


def test_the_official_client_may_close_a_stream(running: Running):
    stream = running.openai().chat.completions.create(
        **HELLO, stream=True, extra_body={"min_new_tokens": 900}, max_tokens=900
    )
    next(iter(stream))
    stream.close()
    running.until_idle()


def test_a_full_queue_tells_when_to_ask_again(narrow: Models, slow_steps: None):
    with serving(narrow) as server, server.http() as client, ExitStack() as waiting:
        body = json.dumps(LONG).encode()
        for expected in ((1, 0), (1, 1)):
            connection = waiting.enter_context(socket.create_connection(server.address))
            connection.sendall(head(len(body)) + body)
            wait_for(lambda expected=expected: running_and_queued(narrow) == expected)
        refused = client.post(CHAT, json=HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            server.openai().chat.completions.create(**HELLO)
        waiting.close()
        server.until_idle()
        assert client.post(CHAT, json=HELLO | {"max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_takes_too_long_is_ended(narrow: Models, slow_steps: None, is_streamed: bool):
    with serving(narrow, Access(max_seconds=0.5)) as server, server.http() as client:
        response = client.post(CHAT, json=LONG | {"stream": is_streamed})
        server.until_idle()
    if is_streamed:
        assert response.status_code == 200
        *_, problem, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert json.loads(problem)["error"]["code"] == "timeout"
        assert done == "[DONE]"
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


def test_an_error_in_a_stream_reaches_the_official_client(narrow: Models, slow_steps: None):
    with serving(narrow, Access(max_seconds=0.5)) as server:
        stream = server.openai().chat.completions.create(
            model="perception_lm",
            messages=asking("Hello"),
            stream=True,
            extra_body={"min_new_tokens": 900},
            max_tokens=900,
        )
        with pytest.raises(openai.APIError, match="not complete"):
            list(stream)


def test_a_body_that_does_not_come_is_not_waited_for(narrow: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "Bodies", lambda most, together: Bodies(most, together, seconds=0.2))
    with serving(narrow) as server:
        with socket.create_connection(server.address) as connection:
            connection.sendall(head(9) + b"{")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        with socket.create_connection(server.address) as connection:
            connection.sendall(head(9) + b"{")  # and leaves
        server.until_idle()


def test_bodies_are_bounded_together(narrow: Models):
    body = json.dumps(HELLO | {"messages": asking("x", image_part())}).encode()
    with serving(narrow, Access(max_bodies=len(body) + 10)) as server, server.http() as client:
        with socket.create_connection(server.address) as connection:
            connection.sendall(head(len(body)) + body[:-1])

            def is_refused() -> bool:
                return client.post(CHAT, content=body, headers={"Content-Type": "application/json"}).status_code == 429

            wait_for(is_refused)
        server.until_idle()
        assert client.post(CHAT, json=HELLO | {"max_tokens": 1}).status_code == 200


def test_a_reader_that_takes_nothing_does_not_stop_others(running: Running):
    """The answer is complete before it is read, and another request is answered meanwhile."""
    body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    with serving(running.models, send_buffer=8192) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.connect(server.address)
        connection.sendall(head(len(body)) + body)
        assert connection.recv(1)
        with server.http() as client:
            assert client.post(CHAT, json=HELLO | {"max_tokens": 3}).status_code == 200
        wait_for(lambda: running_and_queued(server.models) == (0, 0))
        assert server.guard.active == 1
        text = b""
        while not text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = connection.recv(1 << 16)
            assert piece
            text += piece
        server.until_idle()


def test_a_reader_that_never_reads_is_dropped(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "STALLED", 1)
    body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    with serving(running.models, send_buffer=8192) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.connect(server.address)
        connection.sendall(head(len(body)) + body)
        wait_for(lambda: server.guard.active == 1)
        server.until_idle()


def test_200_connections_at_once(running: Running):
    """All are answered, or told that the queue is full."""

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post(CHAT, json=HELLO | {"max_tokens": 1}) for _ in range(200)))

    with ThreadPoolExecutor(1) as pool:  # this thread may have a loop that runs, of a browser
        answers = pool.submit(lambda: asyncio.run(ask_all())).result()
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) >= 64
    assert set(statuses) <= {200, 429}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.is_success}) == 1
    running.until_idle()
    assert threading.active_count() < 100


def test_health_tells_of_loading_and_draining(narrow: Models):
    waiting = Models({"perception_lm": Path("unread")}, lambda folder: narrow.get("perception_lm").vlm, max_rows=1)
    with serving(waiting) as server, server.http() as client:

        def ask() -> list[int | str]:
            answers = [client.get("/health"), client.get("/v1/models"), client.post(CHAT, json=HELLO)]
            return [answers[0].json()["status"], *(answer.status_code for answer in answers)]

        assert ask() == ["loading", 503, 503, 503]
        assert client.get("/v1/models/perception_lm").status_code == 503
        waiting.load()
        assert ask() == ["ok", 200, 200, 200]
        waiting.draining = True
        assert ask() == ["draining", 503, 200, 503]
    waiting.close()


def test_metrics_count_what_was_done(narrow: Models):
    with serving(narrow) as server, server.http() as client:
        three = HELLO | {"max_tokens": 3, "min_new_tokens": 3}
        client.post(CHAT, json=three)
        client.post(CHAT, json=three | {"stream": True})
        client.post(CHAT, json={})
        client.get("/somewhere/else")
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['onnx_vlm_requests_total{path="/v1/chat/completions",status="200"}'] == "2.0"
    assert values['onnx_vlm_requests_total{path="/v1/chat/completions",status="400"}'] == "1.0"
    assert values['onnx_vlm_requests_total{path="other",status="404"}'] == "1.0"
    assert values['onnx_vlm_answer_tokens_total{model="perception_lm"}'] == "6.0"
    assert values['onnx_vlm_time_to_first_token_seconds_count{model="perception_lm"}'] == "2.0"
    assert values['onnx_vlm_time_between_tokens_seconds_count{model="perception_lm"}'] == "4.0"
    assert values['onnx_vlm_queued_requests{model="perception_lm"}'] == "0.0"
    for name in ("rows", "kv_bytes", "image_cache_hits_total", "prefix_cache_misses_total"):
        assert f'onnx_vlm_{name}{{model="perception_lm"}}' in values
    assert "process_resident_memory_bytes" in values
