"""Answers on the page: their text, their boxes on the image, and the links between the two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapes
from browsing import ask, boxes, drop, edges
from onnx_vlm.runtime import VLM, load

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

SIZE = (640, 480)


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def scene() -> shapes.Scene:
    """One with two things of one kind."""
    scenes = map(shapes.scene, range(shapes.HELD_OUT, shapes.HELD_OUT + 50))
    return next(
        scene for scene in scenes if len(scene.things) == 2 and len({thing.name for thing in scene.things}) == 1
    )


@pytest.fixture
def drawn(scene: shapes.Scene, tmp_path: Path) -> Path:
    path = tmp_path / "shapes.png"
    shapes.draw(scene, *SIZE).save(path)
    return path


def lit(page: Page, selector: str) -> list[bool]:
    return page.eval_on_selector_all(selector, 'all => all.map((one) => one.classList.contains("lit"))')


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus; each one on the way shows that it has it."""
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or page.evaluate("document.activeElement.matches('body, #prompt')")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab does not lead to {selector}")


def test_boxes_are_where_generate_has_them_at_every_size(page: Page, vlm: VLM, scene: shapes.Scene, drawn: Path):
    prompt = f"detect {scene.things[0].name}"
    expected = vlm.generate(prompt, images=drawn).boxes
    assert len(expected) == 2
    drop(page, drawn)
    ask(page, prompt)
    for width, height in ((1200, 800), (390, 844), (820, 1180), (1440, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        image = page.locator("#image").bounding_box()
        assert 0 <= image["x"] < image["x"] + image["width"] <= width
        assert np.allclose(boxes(page, *SIZE), [edges(box) for box in expected], atol=0.5)
    rows = page.locator(".row").all_inner_texts()
    assert [list(map(int, row.split("\n")[-4:])) for row in rows] == [
        [int(edge + 0.5) for edge in edges(box)] for box in expected
    ]
    assert page.locator(".prose").inner_text() == f"{scene.things[0].name} × 2"


def test_boxes_appear_before_the_answer_ends(page: Page, scene: shapes.Scene, drawn: Path):
    drop(page, drawn)
    page.evaluate(
        """() => {
            window.seen = [];
            const note = () => seen.push([document.querySelectorAll("#boxes .box").length,
                                          document.querySelector(".answer").getAttribute("aria-busy")]);
            new MutationObserver(note).observe(document.querySelector("#boxes"), {childList: true});
        }"""
    )
    ask(page, f"detect {scene.things[0].name}")
    assert page.evaluate("seen") == [[1, "true"], [2, "true"]]


def test_rows_and_boxes_light_up_together(page: Page, scene: shapes.Scene, drawn: Path):
    drop(page, drawn)
    ask(page, f"detect {scene.things[0].name}")
    page.hover(".row >> nth=1")
    assert lit(page, ".box") == lit(page, ".row") == [False, True]
    assert page.locator("#readout").inner_text().startswith("left ")
    page.hover(".box >> nth=0")
    assert lit(page, ".box") == lit(page, ".row") == [True, False]
    page.hover(".phrase")
    assert lit(page, ".box") == [True, True]
    page.mouse.move(0, 0)
    assert lit(page, ".box") == [False, False]
    assert page.locator("#readout").inner_text() == ""


def test_the_keyboard_is_enough(page: Page, scene: shapes.Scene, drawn: Path):
    page.set_input_files("#file", drawn)  # a system's dialog opens it
    page.wait_for_selector("#plate", state="visible")
    tab_to(page, "#presets button")
    page.keyboard.press("Enter")
    assert page.input_value("#prompt") == "detect "
    page.keyboard.type(scene.things[0].name)
    page.keyboard.press("Enter")
    page.wait_for_selector('.answer[aria-busy="false"]')
    page.focus("#boxes .box >> nth=0")
    tab_to(page, ".row")
    assert lit(page, ".box") == [True, False]
    page.keyboard.press("Tab")
    assert lit(page, ".box") == [False, True]


def test_an_answer_is_announced_when_it_is_complete(page: Page, drawn: Path):
    drop(page, drawn)
    ask(page, "caption")
    assert page.get_attribute("#log", "aria-live") == "polite"
    nameless = page.eval_on_selector_all(
        "button, input, select, textarea",
        """all => all.filter((one) => one.checkVisibility())
                    .filter((one) => !one.innerText?.trim() && !one.ariaLabel && !one.labels?.length)
                    .map((one) => one.outerHTML)""",
    )
    assert nameless == []


def test_an_earlier_answer_shows_its_boxes_again(page: Page, scene: shapes.Scene, drawn: Path):
    drop(page, drawn)
    ask(page, f"detect {scene.things[0].name}")
    ask(page, "caption")
    assert page.locator(".box").count() == 0
    page.hover(".question >> nth=0")
    assert page.locator(".box").count() == 2


def test_phrases_of_a_caption_are_linked_to_their_boxes(page: Page, bundles: Callable[..., Path], tmp_path: Path):
    scenes = map(shapes.scene, range(shapes.HELD_OUT, shapes.HELD_OUT + 50))
    scene = next(scene for scene in scenes if len({thing.name for thing in scene.things}) == 2)
    shapes.draw(scene, *SIZE).save(tmp_path / "shapes.png")
    expected = load(bundles("kosmos2"), threads=1).generate("<grounding>An image of", tmp_path / "shapes.png")
    assert len(expected.entities) == 2
    page.select_option("#models", "kosmos2")
    drop(page, tmp_path / "shapes.png")
    page.click("text=Caption with boxes")
    page.wait_for_selector('.answer[aria-busy="false"]')
    assert page.locator(".prose").inner_text() == expected.caption
    assert page.locator(".phrase").all_inner_texts() == [entity.label for entity in expected.entities]
    assert np.allclose(boxes(page, *SIZE), [edges(box) for box in expected.boxes], atol=0.5)
    page.hover(".phrase >> nth=1")
    assert lit(page, ".box") == [False, True]
    ask(page, "Question: how many circles? Answer:")  # without phrases the prompt is not repeated
    assert page.locator(".exchange:last-child .prose").inner_text() == str(scene.count("circle"))


def test_a_conversation_goes_on(page: Page, bundles: Callable[..., Path], drawn: Path, scene: shapes.Scene):
    """Earlier turns are sent where the model knows them, and left out where it does not."""
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data) if request.method == "POST" else None)
    questions = shapes.chat_questions(scene)[:3]
    page.select_option("#models", "perception_lm")
    drop(page, drawn)
    for question in questions:
        ask(page, question.prompt)
    answers = page.locator(".prose").all_inner_texts()
    assert answers == [question.answer for question in questions]
    sent = json.loads(bodies[-1])["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant"] * 2 + ["user"]
    assert [message["content"] for message in sent[1::2]] == answers[:2]
    assert [len(message["content"]) for message in sent[::2]] == [2, 1, 1]
    page.select_option("#models", "paligemma2")
    ask(page, "caption")
    ask(page, "how many circles")
    assert len(json.loads(bodies[-1])["messages"]) == 1


def test_speed_is_shown(page: Page, drawn: Path):
    drop(page, drawn)
    ask(page, "caption")
    text = page.locator(".speed").inner_text()
    assert all(word in text for word in ("s to first token", "tokens/s", "tokens"))
