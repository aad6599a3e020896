"""A short campaign of every target, and that a campaign sees what it looks for."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime.options import FIELDS, Field

from .campaign import Files, Target, run, save
from .mutations import damage_json
from .options import VALID

REPOSITORY = Path(__file__).parents[2]
CASES = {
    "manifests": 400,
    "bundles": 60,
    "images": 1500,
    "videos": 100,
    "checkpoints": 30,
    "command_lines": 40,
    "options": 60,
}


@pytest.mark.parametrize("target", CASES)
def test_damaged_input_is_answered_or_refused(target: str, tmp_path: Path):
    command = [sys.executable, "-m", "tests.fuzz", "--only", target, "--cases", str(CASES[target])]
    done = subprocess.run(
        [*command, "--failures", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES[target]:,} " in done.stdout  # in the row of all outcomes


def test_equal_seeds_do_equal_damage_to_json():
    data = json.dumps({"a": [1, 2.5, {"b": "text", "c": [None, True]}], "d": {}}).encode()
    first, second = ([damage_json(random.Random(seed), data) for seed in range(2000)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 1000


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
@given(data=some.data())
@settings(max_examples=50, database=None, deadline=None, derandomize=True)
def test_valid_options_are_accepted(field: Field, data: some.DataObject):
    value = data.draw(VALID[field.name])
    assert value is None or field.check(value) is not None


def misbehave(files: Files, folder: Path) -> str:
    kind = files["kind"].decode()
    if kind == "refused":
        raise InputError("refused")
    if kind == "exception":
        raise ZeroDivisionError
    if kind == "exit":
        sys.exit(0)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "loop":
        while True:
            pass
    if kind == "sleep":
        time.sleep(60)
    if kind == "memory":
        assert bytearray(os.urandom(1 << 20) * 80)
    if kind == "addresses":
        assert bytearray(1 << 34)
    return "fine"


@pytest.mark.parametrize(
    ("kind", "word", "told"),
    [
        ("fine", "fine", None),
        ("refused", "InputError", None),
        ("exception", "FAILED ZeroDivisionError", "ZeroDivisionError"),
        ("exit", "FAILED SystemExit", "SystemExit"),
        ("crash", "CRASH", "misbehave"),
        ("loop", "HANG", "misbehave"),
        ("sleep", "HANG", "no answer"),
        ("memory", "MEMORY", "grew by"),
        ("addresses", "FAILED MemoryError", "MemoryError"),
    ],
)
def test_a_campaign_sees_failures_and_goes_on(
    kind: str, word: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fuzz.campaign.WALL_SECONDS", 3)
    kinds = [kind, "fine"]
    target = Target("mock", lambda rng: {}, misbehave, seconds=0.5, memory=64 << 20)
    object.__setattr__(target, "input", lambda seed: {"kind": kinds[seed].encode()})
    first, second = run(target, 0, cases=2)
    assert (first.seed, first.word, second.word) == (0, word, "fine")
    assert (first.failure is None) == (told is None)
    if told is not None:
        assert told in first.failure
        saved = save(target, first, tmp_path)
        assert (saved / "kind").read_text() == kind
        assert told in (saved / "failure.txt").read_text()
