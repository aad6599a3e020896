"""Location tokens to boxes, boxes to a drawing."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_vlm.graphs.manifest import LocationTokens
from onnx_vlm.runtime import Box, draw
from onnx_vlm.runtime.grounding import boxes
from PIL import Image

FORMAT = LocationTokens("locations", "<loc{:04d}>", "<seg{:03d}>", 16, 128, 1024, ("ymin", "xmin", "ymax", "xmax"), ";")


def test_one_box_in_pixels_of_the_picture():
    text = "<loc0256><loc0128><loc0512><loc0768> red circle"
    assert boxes(text, FORMAT, 640, 480) == [Box("red circle", 80.0, 120.0, 480.0, 240.0)]


def test_the_published_example():
    # transformers' integration test of "detect shoe"
    (box,) = boxes("<loc0051><loc0309><loc0708><loc0646> shoe", FORMAT, 1024, 1024)
    assert box == Box("shoe", 309.0, 51.0, 646.0, 708.0)


@pytest.mark.parametrize("separator", [" ; ", ";", " "])
def test_several_boxes(separator: str):
    texts = ["<loc0000><loc0000><loc0512><loc0512> cat", "<loc0512><loc0512><loc1023><loc1023> dog"]
    found = boxes(separator.join(texts), FORMAT, 1024, 1024)
    assert [box.label for box in found] == ["cat", "dog"]
    assert [box.xmax for box in found] == [512.0, 1023.0]


def test_a_box_needs_four_tokens():
    assert boxes("<loc0001><loc0002><loc0003> cat", FORMAT, 10, 10) == []
    assert boxes("<loc0001>" * 5, FORMAT, 10, 10) == []
    assert boxes("no box at all", FORMAT, 10, 10) == []


def test_codes_of_a_segmentation_are_no_label():
    text = "<loc0000><loc0000><loc0512><loc0512><seg012><seg127> cat ; <loc0001><loc0002><loc0003><loc0004><seg001> dog"
    assert [box.label for box in boxes(text, FORMAT, 10, 10)] == ["cat", "dog"]


def test_a_box_may_lack_a_label():
    assert [box.label for box in boxes("<loc0000><loc0000><loc0010><loc0010>", FORMAT, 10, 10)] == [""]


@pytest.mark.parametrize("background", ["white", "black", "grey"])
def test_a_drawing_shows_box_and_label_and_leaves_the_picture(background: str):
    picture = Image.new("RGB", (320, 240), background)
    before = np.asarray(picture).copy()
    drawn = np.asarray(draw(picture, [Box("red circle", 40, 60, 200, 160)]))
    assert (np.asarray(picture) == before).all()
    changed = (drawn != before).any(-1)
    assert changed[60:160, 38:46].any(axis=1).all(), "the left edge"
    assert changed[35:58, 40:90].mean() > 0.5, "the label above the box"
    assert not changed[80:140, 60:180].any(), "what the box holds stays visible"


def test_a_drawing_keeps_labels_inside_small_pictures():
    drawn = draw(Image.new("L", (24, 18)), [Box("a long label [of] many words", 20, 0, 24, 18), Box("", 0, 0, 1, 1)])
    assert drawn.size == (24, 18)
    assert drawn.mode == "RGB"
