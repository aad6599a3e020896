"""What the page says when something goes wrong, and how an answer is stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import shapes
from browsing import ask, drop, serve

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

CHAT = "**/v1/chat/completions"


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    shapes.draw(shapes.scene(shapes.HELD_OUT)).save(tmp_path / "shapes.png")
    return tmp_path / "shapes.png"


def stream(*events: dict) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def text(content: str) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("status", "headers", "message", "says"),
    [
        (429, {"Retry-After": "7"}, "64 requests wait", "64 requests wait. Try again in 7 s."),
        (413, {}, "the body has too many bytes", "The body has too many bytes."),
        (503, {}, "the server is draining", "The server is draining."),
    ],
)
def test_a_refusal_is_shown_in_the_servers_words(
    page: Page, drawn: Path, status: int, headers: dict[str, str], message: str, says: str
):
    page.expected = rf"the server responded with a status of {status}"
    body = json.dumps({"error": {"message": message}})
    page.route(CHAT, lambda route: route.fulfill(status=status, headers=headers, body=body))
    drop(page, drawn)
    ask(page, "caption")
    assert page.locator(".problem").inner_text() == says
    page.unroute(CHAT)
    ask(page, "caption")  # it goes on
    assert page.locator(".prose").inner_text() == shapes.caption(shapes.scene(shapes.HELD_OUT))


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ({"error": {"message": "the model failed"}}, "The model failed."),
        (text("."), "The server ended the answer too early."),
    ],
)
def test_what_has_come_stays_when_a_stream_fails(page: Page, drawn: Path, last: dict, says: str):
    body = stream(text("a red"), last)
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    drop(page, drawn)
    ask(page, "caption")
    assert page.locator(".prose").inner_text().startswith("a red")
    assert page.locator(".problem").inner_text() == says


def test_an_invalid_question_is_refused_by_the_server(page: Page, drawn: Path):
    page.expected = "the server responded with a status of 4"
    drop(page, drawn)
    ask(page, "word " * 2000)
    assert "token" in page.locator(".problem").inner_text()


def test_a_server_that_is_gone(visit: Callable[..., Page], bundle: Path, drawn: Path):
    with serve(bundle) as address:
        page = visit(address)
        page.wait_for_selector("#presets button")
        drop(page, drawn)
    page.expected = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_SOCKET_NOT_CONNECTED"
    ask(page, "caption")
    assert page.locator(".problem").inner_text() == "The server cannot be reached. Check that it is still running."


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_an_answer_is_stopped(page: Page, drawn: Path, how: str):
    page.route(CHAT, lambda route: None)  # no answer comes
    drop(page, drawn)
    page.fill("#prompt", "caption")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#send.busy")
    assert page.get_attribute("#send", "aria-label") == "Stop"
    if how == "button":
        page.click("#send")
    else:
        page.keyboard.press("Escape")
    page.wait_for_selector("#send:not(.busy)")
    assert page.locator(".speed").inner_text() == "stopped"
    page.unroute_all(behavior="ignoreErrors")
    ask(page, "caption")
    assert page.locator(".prose").inner_text() == shapes.caption(shapes.scene(shapes.HELD_OUT))


def test_a_key_is_asked_for_and_kept_for_the_session(visit: Callable[..., Page], bundle: Path, drawn: Path):
    with serve(bundle, "--api-key", "right-key") as address:
        page = visit(address)
        page.expected = "the server responded with a status of 401"
        page.wait_for_selector("#key", state="visible")
        page.fill("#secret", "wrong-key")
        page.press("#secret", "Enter")
        page.wait_for_selector("text=The server does not take this key.")
        page.fill("#secret", "right-key")
        page.press("#secret", "Enter")
        page.wait_for_selector("#presets button")
        page.reload()
        page.wait_for_selector("#presets button")
        assert page.locator("#key").is_hidden()
        drop(page, drawn)
        ask(page, "caption")
        assert page.locator(".prose").inner_text() == shapes.caption(shapes.scene(shapes.HELD_OUT))
