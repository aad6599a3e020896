"""The command `chat`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import shapes
from helpers import run_command
from onnx_vlm.runtime import load
from onnx_vlm.runtime.cli import app

SCENE = shapes.scene(shapes.HELD_OUT)


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_chat_answers_line_by_line(
    bundles: Callable[..., Path],
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    bundle, questions = bundles("perception_lm"), [question.prompt for question in shapes.chat_questions(SCENE)[:3]]
    chat = load(bundle, threads=1).chat(image)
    answers = [chat.ask(question, max_new_tokens=9).text for question in questions]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*questions[:2], "", questions[2]])))
    folder = tmp_path / "embeddings"
    run("chat", bundle, "--image", image, "--threads", 1, "--max-new-tokens", 9, "--embedding-folder", folder)
    assert capsys.readouterr().out.splitlines() == answers
    assert list(folder.iterdir())


def test_a_question_that_cannot_be_answered_does_not_end_the_session(bundle: Path, image: Path):
    lines = ["caption", "caption <image>", "caption " * 600, "caption \udcff\udcfe", "caption"]
    done = run_command(
        "chat",
        bundle,
        "--image",
        image,
        "--threads",
        1,
        "--max-new-tokens",
        5,
        input="\n".join(lines),
        encoding="utf-8",
        errors="surrogateescape",
    )
    first, *refused, last = done.stdout.splitlines()
    assert done.returncode == 0
    assert first == last != ""
    assert refused == ["", "", ""]
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for sentence, reason in zip(sentences, ("<image>", "positions", "UTF-8"), strict=True):
        assert reason in sentence
