"""Location tokens to boxes, codes to masks."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_vlm.graphs.manifest import LocationTokens
from onnx_vlm.runtime import Box, Mask
from onnx_vlm.runtime.grounding.locations import boxes, filled, masks
from onnx_vlm.runtime.grounding.types import run_lengths

FORMAT = LocationTokens("<loc{:04d}>", "<seg{:03d}>", 16, 128, 1024, ("ymin", "xmin", "ymax", "xmax"), ";")


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


CODES = "".join(f"<seg{number:03d}>" for number in range(16))
BOX = "<loc0256><loc0128><loc0512><loc0768>"


@pytest.mark.parametrize("answer", [f"{BOX}{CODES} cat", f"{BOX} {CODES}cat ; {BOX} dog"])
def test_masks_are_boxes_with_all_their_codes(answer: str):
    (mask,) = masks(answer, FORMAT, 640, 480)
    assert mask == Mask("cat", Box("cat", 80.0, 120.0, 480.0, 240.0), tuple(range(16)))
    assert mask.pixels is None


@pytest.mark.parametrize("answer", [f"{BOX} cat", f"{BOX}{CODES[:-8]} cat", f"{BOX}{CODES}<seg001>", f"{CODES} cat"])
def test_other_numbers_of_codes_are_no_mask(answer: str):
    assert masks(answer, FORMAT, 640, 480) == []


def test_a_shape_fills_its_box_of_the_whole_picture():
    shape = np.full((64, 64), -1, np.float32)
    shape[:, 32:] = 1
    for box, left, right in ((Box("", 10.4, 3, 30.4, 9), 20, 30), (Box("", 10, 3, 12, 9), 11, 12)):
        pixels = filled(Mask("", box, ()), shape, 40, 12).pixels
        wanted = np.zeros((12, 40), bool)
        wanted[3:9, left:right] = True
        assert (pixels == wanted).all()
    for box in (Box("", 5, 5, 5, 9), Box("", 9, 5, 5, 9)):
        assert not filled(Mask("", box, ()), shape, 40, 12).pixels.any()


@pytest.mark.parametrize(
    ("rows", "counts"), [(["01", "01"], [2, 2]), (["10", "11"], [0, 2, 1, 1]), (["00"], [2]), (["11"], [0, 2])]
)
def test_run_lengths_are_those_of_coco(rows: list[str], counts: list[int]):
    pixels = np.array([[digit == "1" for digit in row] for row in rows])
    assert run_lengths(pixels) == {"size": [len(rows), len(rows[0])], "counts": counts}
