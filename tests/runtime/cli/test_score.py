"""The command `score`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import run_command
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime import load
from onnx_vlm.runtime.cli import app


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_score_prints_the_likeliest_first(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]):
    labels = [str(number) for number in range(4)]
    scores = load(bundle, threads=1).score("how many circles", image, labels)
    scores.sort(key=lambda score: -score.log_probability)
    candidates = [part for label in labels for part in ("--candidate", label)]
    asked = ("score", bundle, "how many circles", "--image", image, "--threads", 1, *candidates)
    run(*asked)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed == [[f"{score.log_probability:.4f}", score.text] for score in scores]
    run(*asked, "--json")
    entries = json.loads(capsys.readouterr().out)["scores"]
    assert [entry["text"] for entry in entries] == [score.text for score in scores]
    assert entries[0]["log_probabilities"] == pytest.approx(scores[0].log_probabilities)


def test_refusals(bundle: Path, image: Path):
    with pytest.raises(InputError, match="end token"):
        run("score", bundle, "caption", "--image", image, "--candidate", "<eos>")
    with pytest.raises(InputError, match="UTF-8"):
        run("score", bundle, "caption", "--image", image, "--candidate", "\udcff")


def test_a_text_that_the_terminal_cannot_show_is_escaped(bundle: Path, image: Path):
    command = ("score", bundle, "how many circles", "--image", image, "--threads", 1, "--candidate", "\u00e9")
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1", "PATH": ""}
    done = run_command(*command, env=environment)
    assert (done.returncode, done.stdout.split()[1]) == (0, "\\xe9"), done.stderr
    done = run_command(*command, "--json", env=environment)
    assert json.loads(done.stdout)["scores"][0]["text"] == "\u00e9"
