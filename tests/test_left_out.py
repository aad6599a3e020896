"""Tests that are left out are told of, and nothing else is skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY
from left_out import FOLDERS, NEEDS, PAGE

KOSMOS2 = "processors/kosmos-2-patch14-224"
TESTS = """
import pytest

@pytest.mark.needs("images")
def test_images():
    pass

@pytest.mark.needs("processors/kosmos-2-patch14-224", "images")
def test_both(assets):
    assert (assets / "images").is_dir()

def test_nothing():
    pass
"""
SKIPS = {
    "in the test": 'import pytest\n@pytest.mark.needs("images")\ndef test_images():\n    pytest.skip("no time")\n',
    "by a marker": 'import pytest\n@pytest.mark.skipif(True, reason="no time")\ndef test_a():\n    pass\n',
    "in a fixture": (
        'import pytest\n@pytest.fixture\ndef a():\n    pytest.skip("no time")\ndef test_a(a):\n    pass\n'
    ),
    "of a file": 'import pytest\npytest.skip("no time", allow_module_level=True)\n',
}


def run(folder: Path, tests: str, assets: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a process of their own, with nothing but this plugin."""
    (folder / "conftest.py").write_text('pytest_plugins = ["left_out"]\n')
    (folder / "test_some.py").write_text(tests)
    environment = {**os.environ, "ONNX_VLM_ASSETS": str(assets), "PYTHONPATH": str(REPOSITORY / "tests")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize("options", [(), ("--numprocesses", "1")])
def test_what_was_left_out_is_said_in_one_line(tmp_path: Path, options: tuple[str, ...]):
    assets = tmp_path / "assets"
    (assets / KOSMOS2).mkdir(parents=True)
    done = run(tmp_path, TESTS, assets, *options)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Tests left out")]
    assert line == (
        "Tests left out: 2. They need images (an example of KOSMOS-2) in ../shared/assets or the folder that"
        " ONNX_VLM_ASSETS names; see docs/testing.md"
    )


def test_nothing_is_left_out_where_everything_is_there(tmp_path: Path):
    for name in FOLDERS:
        (tmp_path / "assets" / name).mkdir(parents=True)
    done = run(tmp_path, TESTS, tmp_path / "assets")
    assert done.returncode == 0
    assert "3 passed" in done.stdout
    assert "left out" not in done.stdout


@pytest.mark.parametrize("how", SKIPS)
def test_other_skips_fail(tmp_path: Path, how: str):
    """Also that of a test whose needs are there."""
    (tmp_path / "assets" / "images").mkdir(parents=True)
    done = run(tmp_path, SKIPS[how], tmp_path / "assets")
    assert done.returncode != 0
    assert "no time" in done.stdout
    assert "skipped only for a need that it names" in done.stdout


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path):
    done = run(tmp_path, TESTS, tmp_path / "none")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"ONNX_VLM_ASSETS is {tmp_path / 'none'}, which is not a folder" in done.stderr


def test_the_page_says_how_to_get_what_is_needed():
    page = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for name, need in NEEDS.items():
        assert any(f"`{name}`" in row and need.description in row.replace("`", "") for row in rows), name
