"""What Triton's Python backend runs: it loads a bundle, and gives every request to one scheduler."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # of Triton's Python backend, only there

from ...graphs import InputError
from ..inputs import requests
from ..model import load
from ..options import FIELDS
from ..results import Generation
from ..scheduling import Scheduler
from ..scheduling.answer_stream import AnswerStream, Piece

#: Names of sampling parameters that clients of the vLLM backend know, and ours.
RENAMED = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "n": "num_return_sequences"}


class TritonPythonModel:
    """The class that the Python backend looks for. Requests that come together share batches."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load what model.json names."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        scheduling = {name: settings.pop(name) for name in ("max_rows", "max_queue") if name in settings}
        self._vlm = load(**settings)
        self._scheduler = Scheduler(self._vlm, **scheduling)

    def execute(self, asked: list[Any]) -> None:
        """Take requests. Their responses are sent from the scheduler's threads."""
        for request in asked:
            sender = request.get_response_sender()
            try:
                self._submit(request, sender)
            except Exception as error:
                _fail(sender, error)

    def finalize(self) -> None:
        """Answer what was taken, then end."""
        self._scheduler.close()

    def _submit(self, request: Any, sender: Any) -> None:
        prompt = _text(request, "text_input")
        if prompt is None:
            raise InputError("text_input is missing; give the prompt there")
        images = [_image(value) for value in _values(request, "image")]
        options = _options(_text(request, "sampling_parameters"))
        excludes = _flag(request, "exclude_input_in_output")
        answer = Answer(sender, "" if excludes else prompt, _flag(request, "stream"), _wanted(request))
        (question,) = requests(prompt, images or None, None, None)
        answer.stream = self._scheduler.submit(question, answer, **options)


class Answer:
    """Turns the events of a request into responses.

    Args:
        sender: of the request's responses.
        echo: the text before the answer.
        streams: whether each piece is a response.
        wanted: which of the further outputs are asked for.
    """

    def __init__(self, sender: Any, echo: str, streams: bool, wanted: set[str]) -> None:
        self._sender, self._echo, self._streams, self._wanted = sender, echo, streams, wanted
        self.stream: AnswerStream | None = None

    def __call__(self, event: Any) -> None:
        """Send what comes; cancel what nobody waits for."""
        if isinstance(event, Piece):
            if self.stream is not None and self._sender.is_cancelled():
                self.stream.cancel()
            elif self._streams and event.text:
                self._send([event.text])
        elif isinstance(event, Exception):
            _fail(self._sender, event)
        else:
            self._end(event)

    def _end(self, answer: Generation) -> None:
        answers = [answer, *answer.alternatives]
        texts = [""] if self._streams else [self._echo + choice.text for choice in answers]
        outputs = {
            "finish_reason": _strings([choice.finish_reason for choice in answers]),
            "num_input_tokens": np.array([answer.prompt_tokens], np.uint32),
            "num_output_tokens": np.array([len(choice.token_ids) for choice in answers], np.uint32),
        }
        self._send(texts, {name: value for name, value in outputs.items() if name in self._wanted}, final=True)

    def _send(self, texts: list[str], more: dict[str, np.ndarray] | None = None, final: bool = False) -> None:
        outputs = {"text_output": _strings(texts), **(more or {})}
        tensors = [triton.Tensor(name, value) for name, value in outputs.items()]
        flags = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(triton.InferenceResponse(output_tensors=tensors), flags=flags)


def _fail(sender: Any, error: Exception) -> None:
    """End a request with an error."""
    response = triton.InferenceResponse(error=triton.TritonError(str(error)))
    sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _strings(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=object)


def _values(request: Any, name: str) -> list[Any]:
    """The values of an input; none if it was left out."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()


def _text(request: Any, name: str) -> str | None:
    values = _values(request, name)
    if not values:
        return None
    try:
        return values[0].decode()
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8; give text in UTF-8") from None


def _flag(request: Any, name: str) -> bool:
    return any(_values(request, name)[:1])


def _wanted(request: Any) -> set[str]:
    names = ("finish_reason", "num_input_tokens", "num_output_tokens")
    return {name for name in names if _flag(request, f"return_{name}")}


def _image(value: bytes) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image is not base64; give the bytes of an image file in base64") from None


def _options(text: str | None) -> dict[str, Any]:
    """The options of an answer in the JSON of sampling_parameters."""
    try:
        parameters = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"sampling_parameters is not JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise InputError("sampling_parameters must be a JSON object")
    options = {RENAMED.get(name, name): value for name, value in parameters.items()}
    known = {field.name for field in FIELDS}
    if unknown := sorted(set(options) - known):
        raise InputError(
            f"sampling_parameters has {unknown[0]!r:.60}, which is unknown; known: {', '.join(sorted(known))}"
        )
    if "temperature" in options and "do_sample" not in options:
        options["do_sample"] = options["temperature"] != 0
    if options.get("temperature") == 0:
        del options["temperature"]
    return options
