"""A server in a process of its own, and what tests do on its page in a browser."""

from __future__ import annotations

import base64
import mimetypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from left_out import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: No window, and nothing that asks the network for anything.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium_browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium's own sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*FLAGS, *sandbox])
        yield browser
        browser.close()


@contextmanager
def serve(*arguments: object) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    command = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", "serve", *map(str, arguments)]
    with subprocess.Popen([*command, "--port", "0", "--threads", "1"], stderr=subprocess.PIPE, text=True) as process:
        try:
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if address := re.search(r"serving .* at (http://\S+)", line):
                    break
            else:
                pytest.fail(f"the server ended before it served:\n{''.join(lines)}")
            yield f"{address[1]}/"
        finally:
            process.kill()


def transfer(page: Page, path: Path) -> Any:
    """A file as a drop or a paste brings it."""
    data = {"data": base64.b64encode(path.read_bytes()).decode(), "name": path.name}
    return page.evaluate_handle(
        """({data, name, type}) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type}));
            return transfer;
        }""",
        data | {"type": mimetypes.guess_type(path.name)[0] or ""},
    )


def drop(page: Page, path: Path) -> None:
    """Drop a file on the page, and wait until its image is shown or it is refused."""
    page.dispatch_event("#mat", "drop", {"dataTransfer": transfer(page, path)})
    shown = page.locator("#about .name").get_by_text(path.name, exact=True)
    shown.or_(page.locator("#notice:not([hidden])")).first.wait_for(state="attached")


def ask(page: Page, prompt: str) -> None:
    """Ask, and wait for the end of the answer."""
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    page.wait_for_selector('.exchange:last-child .answer[aria-busy="false"]')


def boxes(page: Page, width: int, height: int) -> list[tuple[float, ...]]:
    """The edges of the boxes on the page, in pixels of an image of `width` x `height`."""
    shares = page.evaluate(
        """() => {
            const image = document.querySelector("#image").getBoundingClientRect();
            return [...document.querySelectorAll("#boxes .box")].map((box) => {
                const {left, top, right, bottom} = box.getBoundingClientRect();
                const across = (x) => (x - image.left) / image.width, down = (y) => (y - image.top) / image.height;
                return [across(left), down(top), across(right), down(bottom)];
            });
        }"""
    )
    return [(left * width, top * height, right * width, bottom * height) for left, top, right, bottom in shares]


def edges(box: Any) -> tuple[float, ...]:
    return box.xmin, box.ymin, box.xmax, box.ymax
