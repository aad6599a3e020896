"""Errors end the command with a sentence and a status: 2 for bad use or input, 1 for a failure."""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers import run_command
from onnx_vlm.graphs import BundleError, InputError, ProviderError
from onnx_vlm.runtime import cli
from onnx_vlm.runtime.cli import console
from typer.testing import CliRunner


def obey_permissions() -> None:
    """Let a process of the superuser obey the permissions of files as others do."""
    if sys.platform == "linux" and os.getuid() == 0:
        drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        for capability in (override, search):
            if ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0) != 0:
                raise OSError("the superuser's rights cannot be dropped")


def refuse(*arguments: object, **options) -> str:
    """The sentence that a command is refused with."""
    done = run_command(*arguments, preexec_fn=obey_permissions, **options)
    assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    return " ".join(done.stderr.split())


def test_permissions_are_told(bundle: Path, image: Path, tmp_path: Path):
    closed, read_only = tmp_path / "closed", tmp_path / "read-only"
    for folder in (closed, read_only):
        folder.mkdir()
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    closed.chmod(0)
    read_only.chmod(0o555)
    drawing = read_only / "drawing.png"
    try:
        assert f"{closed}" in refuse("inspect", closed / "bundle")
        sentence = refuse("generate", bundle, "caption", "--image", closed / "i.png")
        assert re.search(r"i\.png.*Permission denied", sentence)
        assert "Permission denied" in refuse("generate", bundle, "x", "--image", image, "--draw", drawing)
        for name in ("manifest.json", "tokenizer.json", "decoder.onnx"):
            (copy / name).chmod(0)
            sentence = refuse("generate", copy, "caption", "--image", image)
            assert re.search(f"{name}.*Permission denied", sentence)
            assert "export the bundle again" not in sentence
            (copy / name).chmod(0o644)
        (copy / "decoder.onnx.data").chmod(0)
        assert re.search(r"decoder\.onnx\.data.*Permission denied", refuse("verify", copy))
    finally:
        closed.chmod(0o700)


def test_paths_that_are_too_long_are_told(bundle: Path, tmp_path: Path):
    long = "x" * 300
    assert "File name too long" in refuse("inspect", long)
    assert "File name too long" in refuse("generate", bundle, "caption", "--image", long)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "bundle", "caption", "--image", ""),
        ("generate", "bundle", "caption", "--image", "a.png", "--image", ""),
        ("generate", "bundle", "caption", "--video", ""),
        ("generate", "bundle", "caption", "--image", "a.png", "--draw", ""),
        ("chat", "bundle", "--embedding-folder", ""),
        ("score", "bundle", "caption", "--image", "", "--candidate", "a"),
        ("bench", "bundle", "--image", ""),
        ("inspect", ""),
        ("export", "checkpoint", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_folder(arguments: tuple[str, ...]):
    refused = CliRunner().invoke(cli.app, list(arguments))
    assert refused.exit_code == 2
    assert "the path is empty" in refused.stderr


@pytest.mark.parametrize("path", ["x[/].png", "x[bold].png", "x\\[/]\\"])
def test_markup_in_paths_is_shown_as_it_is(path: str, tmp_path: Path):
    assert path in refuse("inspect", path, cwd=tmp_path)


@pytest.mark.parametrize("command", ["generate bundle x --provider", "doctor --provider", "warmup bundle --provider"])
@pytest.mark.parametrize("provider", ["foo", "", "CPU"])
def test_an_unknown_provider_is_bad_input(command: str, provider: str):
    with pytest.raises(ProviderError, match=f"'{provider}'.*supported: ") as refused:
        cli.app([*command.split(), provider], standalone_mode=False)
    assert refused.value.exit_status == 2


@pytest.mark.parametrize(
    "arguments", [("generate", "bundle", "\udcff"), ("generate", "bundle", "x", "--stop", "\udcff")]
)
def test_text_that_is_no_utf8_is_refused(arguments: tuple[str, ...]):
    with pytest.raises(InputError, match="not UTF-8"):
        cli.app(list(arguments), standalone_mode=False)


@pytest.mark.parametrize(
    ("error", "sentence", "status"),
    [
        (BundleError("a [bold] bundle"), "error: a [bold] bundle", 2),
        (ProviderError("does not load"), "error: does not load", 1),
        (PermissionError(13, "Permission denied", "a.png"), "a.png: Permission denied", 2),
        (OSError(28, "No space left on device", "out"), "out: No space left on device", 1),
        (MemoryError(), "out of memory", 1),
        (KeyError("PSD"), "unexpected KeyError: 'PSD'; this is a defect of onnx-vlm", 1),
    ],
)
def test_every_error_is_a_sentence_with_a_status(
    error: Exception, sentence: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(console, "app", fail)
    monkeypatch.delenv(console.DEBUG, raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    assert sentence in capsys.readouterr().err
    monkeypatch.setenv(console.DEBUG, "1")
    with pytest.raises((type(error), SystemExit)) as raised:
        cli.main()
    assert (raised.value is error) == (not isinstance(error, (BundleError, ProviderError)))


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]):
    console.print_json({"scores": [math.nan, (math.inf, 1.5)], "boxes": {"left": -math.inf}, "text": "é"})
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == {
        "scores": [None, [None, 1.5]],
        "boxes": {"left": None},
        "text": "é",
    }
