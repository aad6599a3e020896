"""How the page looks: sizes, light and dark, motion, masks; and what its security policy forbids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapes
from browsing import ask, drop
from helpers import REPOSITORY
from onnx_vlm.runtime.grounding.types import run_lengths

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

NAME = shapes.scene(shapes.HELD_OUT).things[0].name
PAGE = REPOSITORY / "runtime" / "server" / "page"
SIZES = [(320, 640), (390, 844), (844, 390), (820, 1180), (1440, 900)]
#: The contrast of each text with what is behind it, by WCAG 2: a canvas turns any colour into red, green and blue.
CONTRASTS = """() => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    const layer = (colours) => {
        context.clearRect(0, 0, 1, 1);
        for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
        const linear = [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((level) =>
            level <= 10 ? level / 3294 : ((level / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const style = (element) => getComputedStyle(element);
    const behind = (element) => element ? [...behind(element.parentElement), style(element).backgroundColor] : [];
    const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility() &&
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return Object.fromEntries(texts.map((element) => {
        const layers = behind(element);
        const [dark, light] = [layer(layers), layer([...layers, style(element).color])].sort((a, b) => a - b);
        return [`${element.tagName}.${element.className}#${element.id}`, (light + 0.05) / (dark + 0.05)];
    }));
}"""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    shapes.draw(shapes.scene(shapes.HELD_OUT), 640, 480).save(tmp_path / "shapes.png")
    return tmp_path / "shapes.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(visit: Callable[..., Page], server: str, drawn: Path, scheme: str):
    page = visit(server, color_scheme=scheme)
    page.wait_for_selector("#presets button")
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5
    drop(page, drawn)
    ask(page, f"detect {NAME}")
    contrasts = page.evaluate(CONTRASTS)
    assert {name: value for name, value in contrasts.items() if value < 4.5} == {}
    levels = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (max(map(int, levels)) < 64) == (scheme == "dark")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nothing_is_cut_off_at_any_size(visit: Callable[..., Page], server: str, drawn: Path, size: tuple[int, int]):
    width, height = size
    page = visit(server, viewport={"width": width, "height": height}, has_touch=width < 1000, is_mobile=width < 500)
    page.wait_for_selector("#presets button")
    page.select_option("#models", "kosmos2")  # it has most presets
    for _ in range(2):  # without an image, and with one
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [*size]
        for target in ("#send", "#prompt", "#presets button >> nth=0", "#models"):
            box = page.locator(target).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height
            assert box["height"] >= 28
        drop(page, drawn)
        ask(page, "<grounding>An image of")
    image = page.locator("#image").bounding_box()
    assert image["x"] >= 0
    assert image["x"] + image["width"] <= width
    assert image["width"] / image["height"] == pytest.approx(640 / 480, rel=0.02)


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_nothing_moves_for_who_wants_no_motion(visit: Callable[..., Page], server: str, drawn: Path, motion: str):
    page = visit(server, reduced_motion=motion)
    page.wait_for_selector("#presets button")
    drop(page, drawn)
    ask(page, f"detect {NAME}")
    name = page.evaluate("getComputedStyle(document.querySelector('.box')).animationName")
    assert name == ("none" if motion == "reduce" else "appear")


def test_masks_are_drawn_where_their_pixels_are(page: Page, drawn: Path):
    """A canned answer: the trained checkpoints write no masks."""
    shapes.draw(shapes.scene(shapes.HELD_OUT), 160, 120).save(drawn)
    rows, columns = np.mgrid[:120, :160]
    inside = (columns - 50) ** 2 + (rows - 40) ** 2 < 25**2
    box = {"label": "ball", "xmin": 25.0, "ymin": 15.0, "xmax": 75.0, "ymax": 65.0}
    masks = [{"label": "ball", "box": box, "codes": [0] * 16, "pixels": run_lengths(inside)}]
    delta = {"onnx_vlm": {"boxes": [box], "masks": masks, "caption": None, "entities": [], "timings": {}}}
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    drop(page, drawn)
    ask(page, "segment ball")
    alpha = page.evaluate(
        """() => {
            const canvas = document.querySelector("#masks canvas");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, canvas.height, [...data].filter((_, index) => index % 4 === 3)];
        }"""
    )
    assert alpha[:2] == [160, 120]
    assert np.array_equal(np.array(alpha[2]).reshape(120, 160) > 0, inside)
    canvas, image = (page.locator(name).bounding_box() for name in ("#masks canvas", "#image"))
    assert canvas == image


def test_a_caption_goes_on_behind_the_phrases_that_it_has(page: Page, drawn: Path):
    """A canned answer, stopped in the middle."""
    found = {
        "boxes": [{"label": "a ball", "xmin": 25.0, "ymin": 15.0, "xmax": 75.0, "ymax": 65.0}],
        "masks": [],
        "caption": "An image of a ball",
    }
    found["entities"] = [{"label": "a ball", "start": 12, "end": 18, "boxes": found["boxes"]}]
    deltas = [{"content": "a ball"}, {"content": "", "onnx_vlm": found}, {"content": " and"}, {"content": " a cat"}]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.select_option("#models", "kosmos2")
    drop(page, drawn)
    ask(page, "<grounding>An image of")
    assert page.locator(".prose").inner_text() == "An image of a ball and a cat"
    assert page.locator(".phrase").all_inner_texts() == ["a ball"]


def test_the_policy_forbids_scripts_styles_and_other_servers(page: Page):
    page.expected = "Content Security Policy"
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
            const blocked = new Set();
            document.addEventListener("securitypolicyviolation", (event) => {
                blocked.add(event.effectiveDirective);
                if (blocked.size === 5) resolve([...blocked].sort());
            });
            const add = (name, values) => document.body.append(Object.assign(document.createElement(name), values));
            add("script", {textContent: "window.wasRun = true"});
            add("style", {textContent: "body { display: none }"});
            add("iframe", {src: "/docs"});
            document.body.insertAdjacentHTML("beforeend", '<p id="styled" style="display: none">text</p>');
            fetch("http://127.0.0.1:9/").catch(() => {});
        })"""
    )
    assert blocked == ["connect-src", "frame-src", "script-src-elem", "style-src-attr", "style-src-elem"]
    assert page.evaluate("window.wasRun ?? false") is False
    assert page.locator("#styled").is_visible()


def test_a_link_leads_to_the_description_of_the_api(page: Page):
    page.click("text=API for programs")
    page.wait_for_selector("text=POST /v1/chat/completions")


def test_the_page_has_no_code_outside_its_modules():
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"style=|\son\w+=|<style|<script(?![^>]* src=)|javascript:|https?:", html)
    names = set(re.findall(r'(?:src|href)="([^"#]+)"', html))
    assert {name for name in names if not (PAGE.parent / name).is_file()} <= {"docs"}
    for path in PAGE.iterdir():
        if path.suffix in (".js", ".css"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(r"innerHTML|outerHTML|eval\(|https?://(?!www\.w3\.org/2000/svg)", source), path
            assert len(source.splitlines()) <= 250, path
