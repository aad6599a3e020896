"""Images that the page takes: dropped, pasted, large, turned; and files that are none."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapes
from browsing import ask, boxes, drop, edges, transfer
from onnx_vlm.runtime import load
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

SCENE = shapes.scene(shapes.HELD_OUT)
NAME = SCENE.things[0].name


@pytest.fixture(scope="module")
def find(bundle: Path) -> Callable[[Path], np.ndarray]:
    """Returns the edges (boxes, 4) of what `generate` finds in a file."""
    vlm = load(bundle, threads=1)
    return lambda path: np.array([edges(box) for box in vlm.generate(f"detect {NAME}", images=path).boxes])


def sent_images(page: Page) -> list[bytes]:
    """Takes the images of all requests from now on."""
    images: list[bytes] = []

    def take(request: Any) -> None:
        if request.method == "POST":
            url = request.post_data_json["messages"][0]["content"][0]["image_url"]["url"]
            images.append(base64.b64decode(url.partition(",")[2]))

    page.on("request", take)
    return images


def test_a_small_image_is_pasted_and_sent_as_it_is(page: Page, tmp_path: Path):
    shapes.draw(SCENE).save(tmp_path / "shapes.png")
    images = sent_images(page)
    page.evaluate(
        'files => document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: files}))',
        transfer(page, tmp_path / "shapes.png"),
    )
    page.wait_for_selector("#plate", state="visible")
    assert page.locator("#about").inner_text().split() == ["shapes.png", "336", "×", "336"]
    ask(page, "caption")
    assert images == [(tmp_path / "shapes.png").read_bytes()]
    assert page.locator(".prose").inner_text() == shapes.caption(SCENE)


def test_a_large_image_is_scaled_down_and_its_boxes_mapped_back(
    page: Page, find: Callable[[Path], np.ndarray], tmp_path: Path
):
    width, height = 2800, 2100
    shapes.draw(SCENE, width, height).save(tmp_path / "large.png")
    images = sent_images(page)
    drop(page, tmp_path / "large.png")
    ask(page, f"detect {NAME}")
    assert "scaled down to 2048 × 1536" in page.locator("#about").inner_text()
    (tmp_path / "sent").write_bytes(images[0])
    assert Image.open(tmp_path / "sent").size == (2048, 1536)
    expected = find(tmp_path / "sent") * width / 2048
    assert np.allclose(boxes(page, width, height), expected, atol=2)
    row = [int(text) for text in page.locator(".row .edge").all_inner_texts()]
    assert np.allclose(row, expected.ravel(), atol=0.51)


def test_a_photograph_is_turned_upright_as_its_camera_says(
    page: Page, find: Callable[[Path], np.ndarray], tmp_path: Path
):
    lying = shapes.draw(SCENE, 640, 480).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    lying.save(tmp_path / "camera.jpg", exif=exif, quality=95)
    drop(page, tmp_path / "camera.jpg")
    ask(page, f"detect {NAME}")
    assert "640 × 480" in page.locator("#about").inner_text()
    expected = find(tmp_path / "camera.jpg")
    assert len(expected)
    assert np.allclose(boxes(page, 640, 480), expected, atol=0.5)


def test_other_formats_are_converted(page: Page, tmp_path: Path):
    shapes.draw(SCENE).save(tmp_path / "shapes.bmp")
    images = sent_images(page)
    drop(page, tmp_path / "shapes.bmp")
    ask(page, "caption")
    assert images[0].startswith(b"\x89PNG")
    assert page.locator(".prose").inner_text() == shapes.caption(SCENE)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("notes.txt", b"no image", "That is not an image."), ("broken.png", b"\x89PNG", "broken.png is not an image")],
)
def test_a_file_that_is_no_image_is_refused(page: Page, tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    drop(page, tmp_path / name)
    page.wait_for_selector("#notice", state="visible")
    assert says in page.locator("#notice").inner_text()
    assert page.locator("#plate").is_hidden()


def test_a_question_without_an_image_says_what_is_missing(page: Page):
    page.fill("#prompt", "caption")
    page.press("#prompt", "Enter")
    assert page.locator("#notice").inner_text() == "Drop, paste or choose an image first."
    assert page.locator(".exchange").count() == 0


def test_another_image_begins_a_new_conversation(page: Page, tmp_path: Path):
    for name, seed in (("first.png", shapes.HELD_OUT), ("second.png", shapes.HELD_OUT + 1)):
        shapes.draw(shapes.scene(seed)).save(tmp_path / name)
        drop(page, tmp_path / name)
        page.wait_for_selector(f"text={name}")
        assert page.locator(".exchange").count() == 0
        ask(page, "caption")
        assert page.locator(".prose").inner_text() == shapes.caption(shapes.scene(seed))
