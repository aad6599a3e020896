"""Who may import what, what is public, and what the packaging must not forget."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import onnx_vlm.batch
import onnx_vlm.export
import onnx_vlm.graphs
import onnx_vlm.runtime
import pytest
from helpers import REPOSITORY
from onnx_vlm.graphs.errors import EXPORT_PACKAGES, explain_import_error
from room_imports import arrows

ROOMS = ("batch", "graphs", "export", "runtime")
HEAVY = ("torch", "torchvision", "timm", "transformers", "safetensors", "onnx", "onnxscript", "onnx_ir")


def sources(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def test_public_names():
    assert onnx_vlm.runtime.__all__ == [
        "VLM",
        "Box",
        "BundleError",
        "Chat",
        "Entity",
        "Generation",
        "GenerationError",
        "InputError",
        "Limits",
        "Mask",
        "Options",
        "ProviderError",
        "Score",
        "Stream",
        "TokenLogprob",
        "VLMError",
        "draw",
        "late_interaction",
        "load",
    ]
    assert onnx_vlm.batch.__all__ == ["Batch", "Predictor", "ProcessorConfig", "Spec", "build_processor", "run"]
    assert onnx_vlm.export.__all__ == ["export_model", "register"]
    for module in (onnx_vlm.batch, onnx_vlm.graphs, onnx_vlm.export, onnx_vlm.runtime):
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", ["onnx_vlm.batch", "onnx_vlm.runtime", "onnx_vlm.runtime.cli", "onnx_vlm.graphs"])
def test_runtime_and_contract_import_nothing_heavy(module: str):
    code = f"""
import sys
for name in {(*HEAVY, "onnx_vlm.export")!r}: sys.modules[name] = None
import {module}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", ["batch", "runtime", "graphs"])
def test_no_source_of_runtime_or_contract_names_what_it_may_not_import(room: str):
    for path in sources(room):
        heavy = re.findall(rf"^\s*(?:import|from) ({'|'.join(HEAVY)})\b", path.read_text(), re.MULTILINE)
        assert not heavy or (path.parent.name == "transforms" and set(heavy) == {"onnx_ir"}), path


def test_the_packages_of_the_extra_are_those_that_an_import_error_is_explained_by():
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["export"]
    names = sorted(re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in extra)
    assert names == sorted(EXPORT_PACKAGES)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'onnx-vlm[export]'"),
        (ModuleNotFoundError("No module named 'torch.gone'", name="torch.gone"), "versions that onnx-vlm is tested"),
        (ModuleNotFoundError("No module named 'other'", name="other"), "No module named 'other'"),
        (ImportError("cannot import name 'x' from 'torch'", name="torch"), "cannot import name 'x'"),
    ],
    ids=["not installed", "a module is gone", "another package", "a name is gone"],
)
def test_an_extra_is_named_only_where_it_is_missing(error: ImportError, expected: str):
    text = explain_import_error(error, "exporting")
    assert expected in text
    assert ("pip install" in text) == (error.name == "torch" and isinstance(error, ModuleNotFoundError))


def test_the_runtime_knows_no_family():
    families = re.compile("paligemma|gemma|perception.?lm|kosmos|siglip|llama|smolvlm|idefics", re.IGNORECASE)
    for path in (*sources("runtime"), *sources("graphs")):
        assert not families.search(path.read_text()), path


PLUGIN = "optimum.commands.register"  #: the namespace that optimum looks for commands in


def test_every_folder_with_code_is_packaged():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(REPOSITORY) for room in ROOMS for path in sources(room)}
    ours = [f"onnx_vlm.{'.'.join(folder.parts)}" for folder in folders]
    assert sorted(settings["packages"]) == sorted([*ours, PLUGIN])
    assert settings["package-dir"] == {f"onnx_vlm.{room}": room for room in ROOMS} | {PLUGIN: "optimum"}
    for room in ROOMS:
        assert (REPOSITORY / room / "py.typed").exists()


def test_no_folder_holds_more_than_14_modules():
    for room in ROOMS:
        for folder in {path.parent for path in sources(room)}:
            assert len(list(folder.glob("[!_]*.py"))) <= 14, folder


def test_no_module_has_more_than_250_lines():
    for room in ROOMS:
        for path in sources(room):
            assert len(path.read_text().splitlines()) <= 250, path


#: For each room, the other rooms that it may import.
ALLOWED = {
    "batch": {"runtime.batch"},
    "graphs": set(),
    "graphs.transforms": {"graphs"},
    "runtime.generation": {"graphs", "runtime"},
    "runtime.images": {"graphs", "runtime"},
    "runtime.text": {"graphs", "runtime.generation"},
    "runtime.grounding": {"graphs", "runtime.generation", "runtime.text"},
    "runtime.providers": {"graphs"},
    "runtime.hub": {"graphs", "runtime.providers"},  # whose folder of caches it shares
    "runtime.inference": {"graphs", "runtime", "runtime.providers", "runtime.text"},
    "runtime.retrieval": {"graphs", "runtime", "runtime.images", "runtime.inference", "runtime.text"},
    "runtime.scheduling": {
        *("graphs", "runtime", "runtime.generation", "runtime.grounding", "runtime.inference", "runtime.text"),
    },
    "runtime.server": {"graphs", "runtime", "runtime.grounding", "runtime.scheduling", "runtime.server.embeddings"},
    "runtime.server.embeddings": {"runtime", "runtime.retrieval", "runtime.scheduling", "runtime.server"},
    "runtime.batch": {
        *("graphs", "runtime", "runtime.grounding", "runtime.hub", "runtime.images", "runtime.providers"),
        *("runtime.scheduling", "runtime.server"),
    },
}
#: The modules in the runtime's own folder that its rooms may import: they import no room themselves.
SHARED = {"limits", "options"}


def test_which_room_imports_which():
    table = arrows()
    for room, allowed in ALLOWED.items():
        assert set(table[room]) <= allowed, room
    for room, targets in table.items():
        if not room.startswith("runtime.cli"):
            assert not any(target.startswith("runtime.cli") for target in targets), room
            assert room.startswith("export") or not any(target.startswith("export") for target in targets), room


#: Rooms of the runtime that stand on its `VLM` and `Pipeline`.
ABOVE = {"batch", "cli", "scheduling", "server", "triton"}


def test_rooms_of_the_runtime_import_only_what_is_below_them():
    for folder in (path for path in (REPOSITORY / "runtime").iterdir() if path.is_dir() and path.name not in ABOVE):
        for path in folder.glob("*.py"):
            upward = set(re.findall(r"^\s*from \.\.(\w+) import", path.read_text(), re.MULTILINE))
            rooms = {other.name for other in (REPOSITORY / "runtime").iterdir() if other.is_dir()}
            assert upward - rooms <= SHARED, path
