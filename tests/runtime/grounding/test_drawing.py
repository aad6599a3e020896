"""Boxes, labels and masks on pictures, light and dark, small and large."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_vlm.runtime import Box, Mask, draw
from onnx_vlm.runtime.grounding.drawing import PALETTE
from PIL import Image, ImageColor, ImageDraw

Rectangle = tuple[float, float, float, float]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Rectangle]]:
    """The texts that are drawn, and the pixels that each takes."""
    found = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, font, **options):
        found.append((text, self.textbbox(xy, text, font=font)))
        return original(self, xy, text, *args, font=font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def luminance(colour: str | tuple[int, ...]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    levels = np.array(ImageColor.getrgb(colour) if isinstance(colour, str) else colour) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_white_letters_are_legible_on_every_colour():
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in PALETTE)


@pytest.mark.parametrize("background", ["white", "black", "grey"])
def test_a_drawing_shows_box_and_label_and_leaves_the_picture(background: str):
    picture = Image.new("RGB", (320, 240), background)
    before = np.asarray(picture).copy()
    drawn = np.asarray(draw(picture, [Box("red circle", 40, 60, 200, 160)]))
    assert (np.asarray(picture) == before).all()
    changed = (drawn != before).any(-1)
    assert changed[60:160, 37:41].any(axis=1).all(), "the left edge"
    assert changed[42:56, 42:100].mean() > 0.5, "the label above the box"
    assert not changed[60:160, 40:200].any(), "what the box holds stays visible"


@pytest.mark.parametrize("size", [(640, 480), (200, 900), (900, 200), (3000, 2000)])
def test_labels_stay_in_the_picture_and_off_each_other(size: tuple[int, int], written: list[tuple[str, Rectangle]]):
    width, height = size
    places = [(0, 0, 0.3, 0.2), (0, 0, 1, 1), (0.9, 0.4, 1, 0.7), (0.3, 0.9, 0.6, 1), (0.5, 0.5, 0.5, 0.5)]
    places += [(0.3 + i / 100, 0.3 + i / 100, 0.6, 0.6) for i in range(4)]
    boxes = [Box(f"thing {i}", a * width, b * height, c * width, d * height) for i, (a, b, c, d) in enumerate(places)]
    draw(Image.new("RGB", size), boxes)
    assert [text for text, _ in written] == [box.label for box in boxes]
    for place, (_, one) in enumerate(written):
        assert one[0] >= 0
        assert one[1] >= 0
        assert one[2] <= width
        assert one[3] <= height
        assert not any(
            one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
            for _, other in written[:place]
        )


def test_letters_grow_with_the_picture(written: list[tuple[str, Rectangle]]):
    for scale in (1, 10):
        draw(Image.new("RGB", (400 * scale, 300 * scale)), [Box("cat", 90, 90, 100, 100)])
    small, large = (bottom - top for _, (_, top, _, bottom) in written)
    assert small >= 7
    assert large > 5 * small


@pytest.mark.parametrize("size", [(24, 18), (3, 3), (200, 4), (1, 1)])
def test_a_drawing_keeps_labels_inside_small_pictures(size: tuple[int, int], written: list[tuple[str, Rectangle]]):
    mask = Mask("x", Box("x", 0, 0, *size), (), np.ones(size[::-1], bool))
    drawn = draw(
        Image.new("L", size), [Box("a long label [of]\nmany words", 20, 0, 24, 18), Box("", 0, 0, 1, 1)], [mask]
    )
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert all(box[2] - box[0] <= size[0] for _, box in written)
    assert size[0] > 100 or all(text.endswith("…") for text, _ in written)


@pytest.mark.parametrize("background", ["white", "black"])
def test_a_mask_is_tinted_with_an_outline(background: str):
    """What is beneath shows through; around it is a white line, which a light picture needs not."""
    picture = Image.new("RGB", (200, 200), background)
    stripe = Image.new("RGB", (10, 200), "grey")
    picture.paste(stripe, (100, 0))
    pixels = np.zeros((200, 200), bool)
    pixels[50:150, 40:160] = True
    box = Box("cat", 40, 50, 160, 150)
    drawn = np.asarray(draw(picture, [], [Mask("cat", box, (), pixels), Mask("none", box, ())]))
    outside = np.pad(np.zeros((98, 118), bool), ((51, 51), (41, 41)), constant_values=True)
    outside[48:152, 38:162] = False
    assert (drawn[outside] == np.asarray(picture)[outside]).all()
    assert (drawn[49, 40:160] == 255).all()
    edge = drawn[50, 60]
    assert tuple(edge) == ImageColor.getrgb(PALETTE[0])
    inside, striped = drawn[100, 60].astype(int), drawn[100, 105].astype(int)
    assert np.abs(inside - striped).max() > 30
    assert np.abs(inside - np.asarray(picture)[100, 60]).max() > 60


def test_an_empty_mask_changes_nothing_and_a_thin_one_is_seen():
    """A line of one pixel has no inside: it is all edge, with the white line around it."""
    picture = Image.new("RGB", (30, 20), "grey")
    box = Box("", 0, 0, 30, 20)
    empty, thin = np.zeros((20, 30), bool), np.eye(20, 30, dtype=bool)
    assert np.array_equal(np.asarray(draw(picture, [], [Mask("", box, (), empty)])), np.asarray(picture))
    drawn = np.asarray(draw(picture, [], [Mask("", box, (), thin)]))
    around = np.zeros_like(thin)
    for row, column in zip(*thin.nonzero()):
        around[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
    assert (drawn[thin] == ImageColor.getrgb(PALETTE[0])).all()
    assert (drawn[around & ~thin] == 255).all()
    assert (drawn[~around] == np.asarray(picture)[~around]).all()
