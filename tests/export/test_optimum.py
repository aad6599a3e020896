"""`optimum-cli export onnx-vlm`, with the real optimum."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

pytestmark = pytest.mark.needs("optimum")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for the path that has the file where an installed wheel has it."""
    commands = tmp_path / "path" / "optimum" / "commands"
    commands.mkdir(parents=True)
    (commands / "register").symlink_to(REPOSITORY / "optimum")
    return tmp_path / "path"


def run(installed: Path, *arguments: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """Run optimum-cli, with code before it and at its end."""
    code = f"""
import importlib.util, sys
if importlib.util.find_spec("optimum.commands.register") is None:  # onnx-vlm is not installed here, but on the path
    sys.path.insert(0, {str(installed)!r})
{before}
from optimum.commands.optimum_cli import main
try: main()
finally:
    {after or "pass"}
"""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=installed.parent)


def test_it_is_listed_and_nothing_heavy_is_imported_for_that(installed: Path):
    heavy = ("torch", "transformers", "onnxruntime", "onnx_vlm", "huggingface_hub")
    done = run(installed, "export", "--help", after=f"print([name for name in {heavy!r} if name in sys.modules])")
    assert "onnx-vlm" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


RECORDED = """
import onnx_vlm.runtime.cli
from huggingface_hub import constants
onnx_vlm.runtime.cli.main = lambda arguments: print(arguments, constants.HF_HUB_CACHE)
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ["--precision", "fp32"]),
        (
            ("--weight-format", "int4", "--group-size", "64", "--task", "image-text-to-text"),
            ["--precision", "int4", "--block-size", "64"],
        ),
    ],
    ids=["defaults", "int4"],
)
def test_it_does_what_our_command_does(installed: Path, flags: tuple[str, ...], expected: list[str]):
    asked = ("export", "onnx-vlm", "-m", "user/model", *flags, "--cache_dir", "kept", "output")
    done = run(installed, *asked, before=RECORDED)
    assert done.stdout.strip() == f"{['export', *expected, '--', 'user/model', 'output']} kept", done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--trust-remote-code",), "never runs code of a checkpoint"),
        (("--task", "text-generation"), "image-text-to-text"),
        (("--weight-format", "int3"), "invalid choice: 'int3'"),
        ((), "missing is no checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_use_ends_with_a_sentence(installed: Path, flags: tuple[str, ...], words: str):
    done = run(installed, "export", "onnx-vlm", "-m", "./missing", *flags, "output")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
