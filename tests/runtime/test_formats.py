"""A bundle of each format since 7, stored as its version wrote it, loads and answers as it did."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import BUNDLES
from onnx_vlm.graphs import migrations
from onnx_vlm.runtime import load
from onnx_vlm.runtime.options import Settings, resolve

PICTURE = np.full((20, 30, 3), 200, np.uint8)
#: What each said when it was stored; the second best token was far behind at every step.
ANSWERS = {
    7: [324, 334, 213, 118, 117, 103, 277, 334],
    8: [321, 107, 286, 294, 234, 286, 97, 286],
    9: [290, 290, 290, 268, 416, 330, 146, 49],
}


def test_every_older_format_has_a_step_and_a_bundle():
    older = list(range(migrations.OLDEST, migrations.FORMAT))
    assert list(migrations.STEPS) == older == list(ANSWERS)
    assert sorted(path.name for path in BUNDLES.iterdir()) == sorted(f"format-{number}" for number in older)


def test_stored_bundles_are_small():
    assert sum(path.stat().st_size for path in BUNDLES.rglob("*") if path.is_file()) < 900_000


@pytest.mark.parametrize("number", ANSWERS)
def test_a_bundle_of_an_older_format_answers_as_it_did(number: int):
    folder = BUNDLES / f"format-{number}"
    assert json.loads((folder / "manifest.json").read_text())["format"] == number
    vlm = load(folder, threads=1)
    assert vlm.generate("what", PICTURE, max_new_tokens=8).token_ids == ANSWERS[number]
    assert vlm.score("what", PICTURE, ["a", "b"])
    assert len(vlm.generate("what", PICTURE, max_new_tokens=4, num_beams=2).token_ids) == 4


def test_defaults_of_format_7_stay_what_they_were():
    """It drew from all tokens where the checkpoint named no top_k."""
    vlm = load(BUNDLES / "format-7", threads=1)
    assert resolve({}, vlm.manifest.generation) == Settings(top_k=0)
