"""Private names of other packages: where they are written, what happens without each, and who sees them replaced."""

from __future__ import annotations

import ast
import logging
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from helpers import CHECKPOINTS, REPOSITORY
from onnx_vlm.export import export_model
from onnx_vlm.export.tracing import patching, trace
from onnx_vlm.graphs import ExportError, GraphSpec, TensorSpec
from onnx_vlm.graphs.transforms import weights

SPEC = GraphSpec((TensorSpec("x", "float32", ("tiles", 8)),), (TensorSpec("y", "float32", ("tiles", 8)),))


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the export logs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("onnx_vlm.export").addHandler(handler)
    patching._say_once.cache_clear()
    yield messages
    logging.getLogger("onnx_vlm.export").removeHandler(handler)


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make borrowed names missing, as in a version of their package that renamed them."""
    look_up = patching._owner_and_attribute

    def hidden(*names: patching.Borrowed) -> None:
        def without(name: patching.Borrowed, owner: object) -> tuple[object, str]:
            return look_up(name, owner) if name not in names else (types.SimpleNamespace(), "gone")

        monkeypatch.setattr(patching, "_owner_and_attribute", without)

    return hidden


def test_private_modules_are_named_in_one_file():
    for path in (REPOSITORY / "export").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for module in modules:
                private = any(part.startswith("_") for part in module.split(".")) and module != "__future__.annotations"
                listed = any(f"{name.module}.{name.name}" == module for name in patching.BORROWED)
                assert not private, f"{path}: {module}; look it up through patching.py"
                assert not listed, f"{path}: {module}; look it up through patching.py"


def test_each_borrowed_name_is_there_in_the_tested_versions():
    for name in patching.BORROWED:
        assert name.module is None or patching.find(name) is not None, name
        assert name.package in patching.TESTED


class Module(torch.nn.Module):
    """Mixes types, is initialised and has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + torch.arange(8)


def computed(folder: Path) -> np.ndarray:
    """What the graph of a module computes."""
    with trace.fake_weights():
        graph = trace.trace(Module(), SPEC)
    random = np.random.default_rng(0)
    values = {"linear.weight": random.normal(size=(8, 8)), "linear.bias": random.normal(size=8)}
    weights.attach(graph, lambda name: values[name].astype(np.float32))
    weights.write(weights.store(graph, folder / "graph.onnx"))
    session = ort.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": random.normal(size=(3, 8)).astype(np.float32)})[0]


@pytest.mark.parametrize(
    "name",
    [patching.TYPE_PROMOTION, patching.PARSED_FUNCTION, patching.NO_INITIALISATION],
    ids=lambda name: name.name,
)
def test_without_a_shortcut_graphs_are_the_same(
    tmp_path: Path, hide: Callable[..., None], said: list[str], name: patching.Borrowed
):
    expected = computed(tmp_path)
    assert said == []
    hide(name)
    for _ in range(2):
        assert (computed(tmp_path) == expected).all()
    (message,) = said
    assert f"{name.package} " in message
    assert name.name in message
    assert patching.TESTED[name.package] in message


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("paligemma2", [patching.DECODER_ROTATION]),
        ("kosmos2", [patching.DECODER_MASK]),
        ("perception_lm", [patching.PATCH_ROTATION, patching.BLOCK_ROTATION]),
    ],
)
def test_an_export_without_a_name_passes_its_proof(tmp_path: Path, hide, said: list[str], family: str, names: list):
    """The proof compares every stage and the tokens to the source model's."""
    hide(*names)
    export_model(CHECKPOINTS / family, tmp_path / "bundle")
    assert len(said) == len(names)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("paligemma2", patching.FAKE_TENSORS),
        ("paligemma2", patching.KEY_CONVERSIONS),
        ("paligemma2", patching.KEY_RENAMING),
        ("perception_lm", patching.DROP_PATH_RATES),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_cannot_be_done_without_is_named(tmp_path: Path, hide: Callable[..., None], family: str, name):
    hide(name)
    tested = f"{name.package}=={patching.TESTED[name.package]}"
    with pytest.raises(ExportError, match=rf"{name.package} \d.* has no .*{name.name}.*tested with.*{tested}"):
        export_model(CHECKPOINTS / family, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_newer_version_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, said: list[str]):
    newer = {"torch": "2.13.9", "onnxscript": "0.8.0.dev1", "timm": "1.0.99", "transformers": "6.0.0"}
    monkeypatch.setattr(patching, "version", newer.__getitem__)
    for _ in range(2):
        patching.warn_of_untested()
    assert [message.split(" is newer than ")[0] for message in said] == ["onnxscript 0.8.0.dev1", "transformers 6.0.0"]


def test_what_is_replaced_is_seen_by_one_thread_alone():
    class Owner:
        def method(self) -> str:
            return "theirs"

        @property
        def value(self) -> str:
            return "theirs"

    class Heir(Owner):
        pass

    seen: dict[str, str] = {}
    entered, done = threading.Event(), threading.Event()

    def replace() -> None:
        with patching.replaced(Heir, method=lambda _: "other", value=property(lambda _: "other")):
            entered.set()
            done.wait(10)

    owner = Heir()
    with patching.replaced(Heir, method=lambda _: "ours", value=property(lambda _: "ours")):
        assert (owner.method(), owner.value) == ("ours", "ours")
        other = threading.Thread(target=lambda: seen.update(method=owner.method(), value=owner.value))
        other.start()
        other.join()
        assert seen == {"method": "theirs", "value": "theirs"}
        waiting = threading.Thread(target=replace)
        waiting.start()
        assert not entered.wait(0.1), "one thread replaces at a time"
        assert owner.method() == "ours"
    assert entered.wait(10)
    assert owner.method() == "theirs"
    done.set()
    waiting.join()
    assert "method" not in vars(Heir)
    assert "value" not in vars(Heir)
