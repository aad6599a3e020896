"""A bundle as a model of Triton: the repository that is written, and what its model does with requests.

The Python backend's module is there only within Triton; a small one with the same names stands for it.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapes
from helpers import run_command
from onnx_vlm.runtime import load

FINAL = 1
PROMPT = f"detect {shapes.scene(shapes.HELD_OUT).things[0].name}"


class Sender:
    """Keeps the responses of one request."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.outputs: dict[str, list[Any]] = {}
        self.error: str | None = None
        self.ended = threading.Event()
        self.cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.ended.is_set()
        if response.error is not None:
            self.error = str(response.error)
        else:
            self.outputs |= {tensor.name: tensor.values.tolist() for tensor in response.tensors}
            self.texts += [text.decode() for text in self.outputs["text_output"]]
        if flags & FINAL:
            self.ended.set()

    def wait(self) -> Sender:
        assert self.ended.wait(60)
        return self


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that a model uses of the Python backend's module."""
    module = ModuleType("triton_python_backend_utils")
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    module.Tensor = lambda name, values: SimpleNamespace(name=name, values=values)
    module.TritonError = lambda text: text
    module.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(
        tensors=output_tensors, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def repository(bundle: Path, tmp_path: Path) -> Path:
    """A model repository that the command wrote."""
    done = run_command("triton", bundle, tmp_path / "models", "--name", "shapes", "--provider", "cpu", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return tmp_path / "models"


@pytest.fixture
def model(backend: None, repository: Path) -> Iterator[Any]:
    """The model, loaded as the backend does it."""
    spec = importlib.util.spec_from_file_location("model", repository / "shapes" / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    made.initialize({"model_repository": str(repository / "shapes"), "model_version": "1"})
    yield made
    made.finalize()
    sys.modules.pop("onnx_vlm.runtime.triton.model")


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    """An image file in base64."""
    shapes.draw(shapes.scene(shapes.HELD_OUT)).save(tmp_path / "shapes.png")
    return base64.b64encode((tmp_path / "shapes.png").read_bytes())


@pytest.fixture
def ask(model: Any, image: bytes) -> Callable[..., Sender]:
    def ask(prompt: str = PROMPT, **inputs: Any) -> Sender:
        sender = Sender()
        values = {"text_input": prompt.encode(), "image": image, **inputs}
        arrays = {
            name: np.array([value], object if isinstance(value, bytes) else None)
            for name, value in values.items()
            if value is not None
        }
        tensors = {name: SimpleNamespace(as_numpy=lambda array=array: array) for name, array in arrays.items()}
        model.execute([SimpleNamespace(inputs=tensors, get_response_sender=lambda: sender)])
        return sender

    return ask


def test_the_repository_has_what_triton_reads(repository: Path, bundle: Path):
    folder = repository / "shapes"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "1/model.py", "1/model.json"}
    config = (folder / "config.pbtxt").read_text()
    for line in ('name: "shapes"', 'backend: "python"', "max_batch_size: 0", "decoupled: true", "KIND_MODEL"):
        assert line in config
    for name in ("text_input", "image", "stream", "sampling_parameters", "exclude_input_in_output", "text_output"):
        assert f'name: "{name}"' in config
    settings = json.loads((folder / "1" / "model.json").read_text())
    assert Path(settings["bundle"]) == bundle.resolve()
    again = run_command("triton", bundle, repository, "--name", "shapes")
    assert again.returncode == 2
    assert "exists; give another name" in again.stderr
    assert run_command("triton", bundle, repository, "--name", "../out").returncode == 2


def test_answers_are_those_of_the_bundle(ask: Callable[..., Sender], bundle: Path, image: bytes):
    vlm = load(bundle, "cpu", threads=1)
    expected = vlm.generate(PROMPT, base64.b64decode(image))
    flags = {"exclude_input_in_output": True, "return_finish_reason": True, "return_num_output_tokens": True}
    whole, streamed, echoed = ask(**flags), ask(stream=True), ask()
    assert whole.wait().texts == [expected.text]
    assert whole.outputs["finish_reason"] == [expected.finish_reason.encode()]
    assert whole.outputs["num_output_tokens"] == [len(expected.token_ids)]
    assert "".join(streamed.wait().texts) == expected.text
    assert len(streamed.texts) > 2
    assert echoed.wait().texts == [PROMPT + expected.text]
    assert set(echoed.outputs) == {"text_output"}
    short = ask("caption en", sampling_parameters=b'{"max_tokens": 2, "temperature": 0}', exclude_input_in_output=True)
    assert short.wait().texts == [vlm.generate("caption en", base64.b64decode(image), max_new_tokens=2).text]
    many = ask(sampling_parameters=b'{"n": 2, "temperature": 1, "seed": 1}')
    assert len(many.wait().texts) == 2


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": b"%%%"}, "image is not base64"),
        ({"image": None}, "at least one"),
        ({"sampling_parameters": b"{"}, "sampling_parameters is not JSON"),
        ({"sampling_parameters": b"[]"}, "must be a JSON object"),
        ({"sampling_parameters": b'{"foo": 1}'}, "'foo', which is unknown"),
        ({"text_input": None}, "text_input is missing"),
        ({"text_input": b"\xff"}, "not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_ends_with_its_error_alone(ask: Callable[..., Sender], inputs: dict[str, Any], words: str):
    assert words in ask(**inputs).wait().error
    assert ask().wait().error is None


def test_a_request_that_is_cancelled_ends(ask: Callable[..., Sender]):
    left = ask(stream=True, sampling_parameters=b'{"max_tokens": 200, "min_tokens": 200}')
    left.cancelled = True
    assert left.wait().error is not None or len(left.texts) < 200
