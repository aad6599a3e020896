"""The built wheel in a fresh environment that has the runtime's dependencies and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import shapes
from helpers import REPOSITORY


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and its extra `cpu`."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", constraints, f"{wheel}[cpu]"]
    subprocess.run(install, check=True, capture_output=True)
    return python


def run(python: Path, *arguments: object, folder: Path) -> str:
    """What a command prints, run away from the checkout and its environment."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [str(argument) for argument in (python, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bundle_answers_there(environment: Path, bundle: Path, tmp_path: Path):
    scene = shapes.scene(shapes.HELD_OUT)
    shapes.draw(scene).save(tmp_path / "shapes.png")
    name = scene.things[0].name
    printed = run(
        environment.with_name("onnx-vlm"),
        "generate",
        bundle,
        f"detect {name}",
        "--image",
        "shapes.png",
        "--json",
        "--draw",
        "boxes.png",
        folder=tmp_path,
    )
    assert json.loads(printed)["boxes"][0]["label"] == name
    assert (tmp_path / "boxes.png").exists()


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("paligemma", "caption"), ("perception_lm", "Describe the picture."), ("kosmos2", "An image of")],
)
def test_other_families_answer_there(
    environment: Path, bundles: Callable[..., Path], tmp_path: Path, name: str, prompt: str
):
    scene = shapes.scene(shapes.HELD_OUT)
    shapes.draw(scene).save(tmp_path / "shapes.png")
    command = (environment.with_name("onnx-vlm"), "generate", bundles(name), prompt, "--image", "shapes.png")
    assert run(*command, folder=tmp_path).strip().endswith(shapes.caption(scene))


def test_it_has_the_page_of_the_server(environment: Path):
    page = Path("runtime", "server", "page")
    (installed,) = environment.parents[1].glob("lib/python3*/site-packages/onnx_vlm")
    names = sorted(path.name for path in (REPOSITORY / page).iterdir())
    assert "index.html" in names
    assert sorted(path.name for path in (installed / page).iterdir()) == names


def test_it_is_small_and_starts_at_once(environment: Path, tmp_path: Path, figure: Callable[[str], None]):
    """Shows the size of the environment and the time of the import, which have goals and no limits here."""
    listed = run(environment, "-m", "pip", "list", "--format=freeze", folder=tmp_path).lower()
    installed = {line.partition("==")[0].partition(" @ ")[0] for line in listed.splitlines()}
    assert {"onnx-vlm", "onnxruntime"} <= installed
    assert not installed & {"torch", "transformers", "onnx", "safetensors"}
    files = [path for path in environment.parents[1].rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_blocks * 512 for path in files)
    code = "import time; t = time.perf_counter(); import onnx_vlm.runtime; print(time.perf_counter() - t)"
    seconds = sorted(float(run(environment, "-c", code, folder=tmp_path)) for _ in range(5))
    figure(f"environment {size / 1e6:.0f} MB (goal 250), import onnx_vlm.runtime {seconds[2]:.3f} s (goal 0.25)")


@pytest.mark.parametrize(
    ("extra", "arguments"), [("export", ["export", "checkpoint", "bundle"]), ("serve", ["serve", "bundle"])]
)
def test_a_missing_extra_is_named(environment: Path, tmp_path: Path, extra: str, arguments: list[str]):
    command = [environment.with_name("onnx-vlm"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"pip install 'onnx-vlm[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


#: Packages that programs in the docs import and an environment with `cpu` has not.
ELSEWHERE = ("openai", "litellm", "langchain_core.messages", "langchain_openai", "ray", "outside_family")
WRONG = """from onnx_vlm.runtime import load
load("bundle", threads="2")
load("bundle").generate("caption", images=1)
load("bundle").generate("caption").text.boxes
"""


def test_programs_of_the_docs_are_typed(environment: Path, tmp_path: Path):
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        if blocks:
            (tmp_path / f"{page.stem.replace('-', '_')}.py").write_text("\n".join(blocks))
    (tmp_path / "wrong.py").write_text(WRONG)
    settings = "\n".join(("[mypy]", *(f"[mypy-{name}]\nignore_missing_imports = True" for name in ELSEWHERE)))
    (tmp_path / "mypy.ini").write_text(settings)
    programs = sorted(path.name for path in tmp_path.glob("*.py"))
    assert {"README.py", "generate.py", "wrong.py"} <= set(programs)
    command = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", "--python-executable", environment]
    done = subprocess.run([*command, *programs], cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = re.findall(r"^(.*?:\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    expected = [("wrong.py:2", "arg-type"), ("wrong.py:3", "call-overload"), ("wrong.py:4", "attr-defined")]
    assert errors == expected, done.stdout + done.stderr


def test_the_command_for_optimum_is_where_optimum_looks(environment: Path, tmp_path: Path):
    code = "import optimum.commands.register as folder, os; print(*os.listdir(folder.__path__[0]))"
    assert run(environment, "-c", code, folder=tmp_path).split() == ["register_onnx_vlm.py"]


def test_the_page_of_the_server_is_packaged(environment: Path, tmp_path: Path):
    code = "import onnx_vlm.runtime, pathlib; print(pathlib.Path(onnx_vlm.runtime.__file__).parent / 'server' / 'page')"
    packaged = Path(run(environment, "-c", code, folder=tmp_path).strip())
    source = REPOSITORY / "runtime" / "server" / "page"
    assert {path.name for path in packaged.iterdir()} == {path.name for path in source.iterdir()}
