"""The real page of the real server in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import chromium_browser, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("paligemma2", "kosmos2", "perception_lm")
SLOWEST = 180_000  #: milliseconds that a step may take, so that a busy machine fails no test


@pytest.fixture(scope="session")
def server(bundles: Callable[..., Path]) -> Iterator[str]:
    """The address of a server of three models."""
    with serve(*map(bundles, NAMES)) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address. When the test ends, nothing may have been logged, thrown, blocked or fetched from elsewhere,
    but what the attribute `expected` of the page matches."""
    pages: list[Page] = []

    def open_page(address: str, **settings: Any) -> Page:
        context = browser.new_context(
            **{"reduced_motion": "reduce", "viewport": {"width": 1200, "height": 800}} | settings
        )
        context.set_default_timeout(SLOWEST)
        page = context.new_page()
        page.problems, page.expected = [], None
        page.on("console", lambda message: page.problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: _check_address(page, request.url, address))
        pages.append(page)
        page.goto(address)
        return page

    yield open_page
    problems = [
        text for page in pages for text in page.problems if not (page.expected and re.search(page.expected, text))
    ]
    for page in pages:
        page.context.close()
    assert not problems


def _check_address(page: Page, url: str, address: str) -> None:
    if not url.startswith((address, "blob:", "data:")):
        page.problems.append(f"a request to {url}")


@pytest.fixture
def page(visit: Callable[..., Page], server: str) -> Page:
    """The page, with its models loaded."""
    page = visit(server)
    page.wait_for_selector("#presets button")
    return page
