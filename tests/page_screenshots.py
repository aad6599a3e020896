"""Makes a screenshot of the server's page in docs: `python tests/page_screenshots.py NAME BUNDLE IMAGE PROMPT...`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from browsing import ask, chromium_browser, drop, serve
from helpers import REPOSITORY
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Names of files, with the size of the window, and whether it is light or dark.
SHOTS = {"page.png": (1280, 800, "light"), "page-phone.png": (390, 844, "dark")}
COLOURS = 192  #: in a file, so that it stays small


def shoot(browser: Browser, address: str, image: Path, prompts: list[str], name: str) -> None:
    """Ask the prompts about the image, point at the first row or phrase, and save what is to be seen."""
    width, height, scheme = SHOTS[name]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        has_touch=width < 600,
        is_mobile=width < 600,
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#presets button")
    drop(page, image)
    for prompt in prompts:
        ask(page, prompt)
    if width > 600:
        page.hover(".shown .row, .shown .phrase >> nth=0")
    seen = Image.open(io.BytesIO(page.screenshot()))
    seen.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(REPOSITORY / "docs" / name, optimize=True)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SHOTS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("prompts", nargs="+")
    arguments = parser.parse_args()
    with serve(arguments.bundle) as address, chromium_browser() as browser:
        shoot(browser, address, arguments.image, arguments.prompts, arguments.name)


if __name__ == "__main__":
    main()
