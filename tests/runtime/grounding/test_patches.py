"""Phrases with boxes; compared with transformers on random texts in `test_processors.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from onnx_vlm.graphs.manifest import PatchTokens
from onnx_vlm.runtime import Box, Entity, InputError
from onnx_vlm.runtime.grounding.patches import read, with_boxes

FORMAT = PatchTokens(
    "<patch_index_{:04d}>",
    32,
    ("<phrase>", "</phrase>"),
    ("<object>", "</object>"),
    "</delimiter_of_multi_objects/>",
)


def test_entities_are_in_pixels_and_their_spans_in_the_caption():
    text = "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object>."
    caption, entities = read(text, FORMAT, 640, 320)
    assert caption == "An image of a snowman."
    assert entities == [Entity("a snowman", 12, 21, [Box("a snowman", 250.0, 15.0, 630.0, 265.0)])]
    assert caption[12:21] == "a snowman"


@pytest.mark.needs("expected")
def test_published_captions(assets: Path):
    published = json.loads((assets / "expected" / "summary.json").read_text())["kosmos2"]
    captions = {"": "An image of a snowman warming himself by a fire.", "_LONG": published["EXPECTED_FINAL_TEXT_LONG"]}
    for which, text in captions.items():
        caption, entities = read(published[f"EXPECTED_PROCESSED_TEXT{which}"], FORMAT, 1, 1)
        assert caption == text
        found = [
            [one.label, [one.start, one.end], [[box.xmin, box.ymin, box.xmax, box.ymax] for box in one.boxes]]
            for one in entities
        ]
        assert found == published[f"EXPECTED_ENTITIES{which}"]


def test_several_boxes_and_boxes_without_a_phrase():
    pair, other = "<patch_index_0000><patch_index_0000>", "<patch_index_0032><patch_index_0063>"
    _, entities = read(f"<phrase>two</phrase><object>{pair}{FORMAT.separator}{other}</object>", FORMAT, 32, 32)
    assert [(box.xmin, box.ymin, box.xmax, box.ymax) for box in entities[0].boxes] == [(0, 0, 1, 1), (0, 1, 32, 2)]
    _, entities = read(f"<object>{pair}{FORMAT.separator}{other}</object>", FORMAT, 32, 32)
    assert [one.label for one in entities] == ["<patch_index_0><patch_index_0>", "<patch_index_32><patch_index_63>"]


@pytest.mark.parametrize(
    ("boxes", "written"),
    [
        (None, ""),
        ([], ""),
        ([None], ""),
        ([[]], ""),
        ([(3, 70)], "<object><patch_index_0003><patch_index_0070></object>"),
        ([[3, 70]], "<object><patch_index_0003><patch_index_0070></object>"),
        ([(0.0, 0.0, 1.0, 1.0)], "<object><patch_index_0000><patch_index_1023></object>"),
        (
            [[(3, 70), (0.5, 0.25, 0.75, 0.5)]],
            "<object><patch_index_0003><patch_index_0070></delimiter_of_multi_objects/>"
            "<patch_index_0272><patch_index_0503></object>",
        ),
    ],
)
def test_boxes_are_written_behind_their_phrase(boxes: list, written: str):
    assert with_boxes("see<phrase> it</phrase> there", boxes, FORMAT) == f"see<phrase> it</phrase>{written} there"


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([None, None], "has 1 phrases .* for 2 given"),
        ([(0, 1024)], "two patches of 0 to 1023"),
        ([(0.5, 0.5, 0.4, 0.6)], "xmin, ymin, xmax, ymax"),
        ([(0.5, 0.5, 1.4, 0.6)], "xmin, ymin, xmax, ymax"),
        ([(1, 2, 3)], "xmin, ymin, xmax, ymax"),
        ([[(3, 70), (1, -2)]], "two patches"),
        ([5], "two patches .* not 5"),
        ([0], "two patches .* not 0"),
        ([True], "two patches .* not True"),
        (["ab"], "two patches .* not 'ab'"),
        ([{"a": 1}], "two patches"),
        ([[None, 1, 2, 3]], "two patches"),
        ([[[0.1, 0.1, 0.5, 0.9], None]], "two patches .* not None"),
        ([[[0.1, 0.1, 0.5, 0.9], 3]], "two patches .* not 3"),
        ([[True, True]], "two patches"),
        ([[0.0, 1.0]], "two patches"),
        ([(math.nan, 0.1, 0.5, 0.9)], "two patches"),
        ([[["0", "1"]]], "two patches"),
        (5, "bboxes is 5; give a list"),
        ("[]", "bboxes is"),
        ({"a": 1}, "bboxes is"),
    ],
)
def test_malformed_boxes_are_refused(boxes: Any, said: str):
    with pytest.raises(InputError, match=said):
        with_boxes("see<phrase> it</phrase> there", boxes, FORMAT)
