"""Every command and every Python block of the README and the docs runs, as printed, where they say it does.

A block that cannot run here has a comment above it that says why: `<!-- not run: ... -->`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import shapes
from helpers import REPOSITORY, run_command

README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
#: languages of blocks: the first two are run
LANGUAGES = {"python", "console", "text", "json", "yaml", "toml", "mermaid"}
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """The command lines of a console block, lines that end in a backslash joined."""
        joined = self.text.replace("\\\n", " ")
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    return [Block(match["language"], match["text"], match["reason"]) for match in BLOCK.finditer(page.read_text())]


@pytest.fixture
def folder(tmp_path: Path, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages name: the repository, bundles of the trained checkpoints, images."""
    for name in ("tests", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "bundle").symlink_to(bundles("emoji"))
    for name in ("paligemma2", "perception_lm", "kosmos2", "colpali"):
        (tmp_path / name).symlink_to(bundles(name))
    (tmp_path / "outside_family.py").symlink_to(REPOSITORY / "tests" / "outside_family.py")
    for index, name in enumerate(("shapes.png", "other.png")):
        shapes.draw(shapes.scene(shapes.HELD_OUT + index)).save(tmp_path / name)
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(shapes.clip(shapes.HELD_OUT)[0][::3]):
        shapes.draw(frame, 112, 112).save(tmp_path / "frames" / f"{index}.png")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_is_so(page: Path, folder: Path):
    found = blocks(page)
    assert {block.language for block in found} <= LANGUAGES
    runnable = [block for block in found if block.reason is None]
    if page != README:  # it exports to `bundle` itself
        (folder / "bundle").symlink_to(folder / "paligemma2")
    for command in [line for block in runnable if block.language == "console" for line in block.commands]:
        program, *arguments = shlex.split(command)
        if program == "onnx-vlm":
            done = run_command(*arguments, cwd=folder)
        else:
            assert program == "python", f"{command}: run it, or say why it is not run"
            done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    code = "\n".join(block.text for block in runnable if block.language == "python")
    if code:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, f"{done.stderr}\n{code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150
