"""Where an export writes: paths that the system refuses, and what exports that were killed leave behind."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import CHECKPOINT, REPOSITORY
from onnx_vlm.export import export_model, output_folder
from onnx_vlm.export.tracing import patching
from onnx_vlm.graphs import ExportError, VLMError, manifest


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who may read and write nothing that root's tests wrote.

    Such a user may not be allowed to read the environment either, so its versions are looked up before.
    """
    versions = {package: version(package) for package in patching.TESTED}
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patching, "version", versions.__getitem__)
            yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file/x", "file: File exists"),
        ("file/x/y", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("n" * 300 + "/x", "File name too long"),
    ],
)
def test_an_output_that_the_system_refuses_is_a_sentence(tmp_path: Path, output: str, said: str):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ExportError, match=said):
        export_model(CHECKPOINT, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_where_nothing_can_be_made_is_a_sentence():
    with pytest.raises(ExportError, match="/proc"):
        export_model(CHECKPOINT, "/proc/x")


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path):
    output = tmp_path / ("n" * 255)
    with output_folder.written_aside(output, False) as folder:
        (folder / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("part", ["checkpoint", "output"])
def test_a_closed_folder_is_a_sentence(tmp_path: Path, part: str):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    tmp_path.chmod(stat.S_IRWXU)
    paths = {"checkpoint": CHECKPOINT, "output": tmp_path / "out", part: closed / "x"}
    with without_rights(), pytest.raises(VLMError, match=r"closed.*: Permission denied") as caught:
        export_model(paths["checkpoint"], paths["output"])
    assert caught.value.exit_status == 2


def leftover(parent: Path, name: str) -> Path:
    """The folder of an export that was killed between its two renames."""
    working = parent / f"{output_folder.PREFIX}dead"
    for inner in ("new", "old"):
        (working / inner / name).mkdir(parents=True)
        (working / inner / name / inner).write_text(inner)
    return working


def test_an_export_puts_back_what_a_killed_one_moved_away(tmp_path: Path):
    leftover(tmp_path, "bundle")
    with output_folder.written_aside(tmp_path / "other", False):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["old"]


def test_an_export_removes_the_leftovers_of_a_killed_one(tmp_path: Path):
    leftover(tmp_path, "bundle")
    (tmp_path / "bundle").mkdir()
    (tmp_path / ".onnx-vlm.link").symlink_to(tmp_path / "bundle")
    (tmp_path / ".onnx-vlm").mkdir()
    with output_folder.written_aside(tmp_path / "other", False):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".onnx-vlm", ".onnx-vlm.link", "bundle", "other"]
    assert not list((tmp_path / "bundle").iterdir())


def test_an_export_leaves_what_a_running_one_works_on(tmp_path: Path):
    running = leftover(tmp_path, "bundle")
    with FileLock(running / "lock"), output_folder.written_aside(tmp_path / "other", False):
        pass
    assert (running / "new" / "bundle" / "new").exists()
    output_folder.remove_leftovers(tmp_path)
    assert not running.exists()


def test_of_two_exports_to_one_name_the_second_to_end_fails(tmp_path: Path):
    output = tmp_path / "bundle"
    second = output_folder.written_aside(output, False)
    second.__enter__()
    with output_folder.written_aside(output, False) as first:
        (first / "first").write_text("first")
    with pytest.raises(ExportError, match="exists"):
        second.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in output.iterdir()] == ["first"]


def test_a_replacement_that_fails_puts_the_old_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "bundle"
    output.mkdir()
    (output / manifest.FILE_NAME).write_text("old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.parent.name == "new":
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), output_folder.written_aside(output, True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (output / manifest.FILE_NAME).read_text() == "old"


def test_a_removal_that_is_cut_short_leaves_nothing_to_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leftover(tmp_path, "bundle")
    (tmp_path / "bundle").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    output_folder.remove_leftovers(tmp_path)
    monkeypatch.undo()
    (tmp_path / "bundle").rmdir()
    output_folder.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_killed_exports_leave_no_half_bundle():
    """At three steps and around both renames; `python -m tests.fuzz.killed_exports` kills more, at random moments."""
    command = [sys.executable, "-m", "tests.fuzz.killed_exports", "--count", "0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "7 killed by SIGKILL" in done.stdout
    assert "2 had moved the old bundle aside, which came back" in done.stdout
