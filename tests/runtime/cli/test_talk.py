"""The commands `chat` and `score`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import shapes
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime import load
from onnx_vlm.runtime.cli.app import app

SCENE = shapes.scene(shapes.HELD_OUT)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.png"
    shapes.draw(SCENE).save(path)
    return path


def run(*arguments: object) -> None:
    app([str(one) for one in arguments], standalone_mode=False)


def test_chat_answers_line_by_line(
    bundles: Callable[..., Path],
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    bundle, questions = bundles("perception_lm"), [question.prompt for question in shapes.chat_questions(SCENE)[:3]]
    chat = load(bundle, threads=1).chat(picture)
    answers = [chat.ask(question, max_new_tokens=9).text for question in questions]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*questions[:2], "", questions[2]])))
    folder = tmp_path / "embeddings"
    run("chat", bundle, "--image", picture, "--threads", 1, "--max-new-tokens", 9, "--embedding-folder", folder)
    assert capsys.readouterr().out.splitlines() == answers
    assert list(folder.iterdir())


def test_score_gives_the_likeliest_first(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]):
    labels = [str(number) for number in range(4)]
    scores = load(bundle, threads=1).score("how many circles", picture, labels)
    scores.sort(key=lambda one: -one.log_probability)
    candidates = [part for label in labels for part in ("--candidate", label)]
    asked = ("score", bundle, "how many circles", "--image", picture, "--threads", 1, *candidates)
    run(*asked)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed == [[f"{one.log_probability:.4f}", one.text] for one in scores]
    run(*asked, "--json")
    given = json.loads(capsys.readouterr().out)["scores"]
    assert [one["text"] for one in given] == [one.text for one in scores]
    assert given[0]["log_probabilities"] == pytest.approx(scores[0].log_probabilities)


def test_refusals(bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("caption\n"))
    with pytest.raises(InputError, match="at least one"):
        run("chat", bundle)
    with pytest.raises(InputError, match="end token"):
        run("score", bundle, "caption", "--image", picture, "--candidate", "<eos>")
