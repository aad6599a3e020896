"""Writing a model repository for Triton: settings, the file that its Python backend runs, and what to load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ...graphs import InputError, manifest

#: The inputs and outputs by name: type, shape, and whether a request may leave it out.
INPUTS = {
    "text_input": ("TYPE_STRING", 1, False),
    "image": ("TYPE_STRING", -1, True),
    "stream": ("TYPE_BOOL", 1, True),
    "sampling_parameters": ("TYPE_STRING", 1, True),
    "exclude_input_in_output": ("TYPE_BOOL", 1, True),
    "return_finish_reason": ("TYPE_BOOL", 1, True),
    "return_num_input_tokens": ("TYPE_BOOL", 1, True),
    "return_num_output_tokens": ("TYPE_BOOL", 1, True),
}
OUTPUTS = {
    "text_output": ("TYPE_STRING", -1),
    "finish_reason": ("TYPE_STRING", -1),
    "num_input_tokens": ("TYPE_UINT32", 1),
    "num_output_tokens": ("TYPE_UINT32", -1),
}
MODEL = '''"""A bundle of onnx-vlm; model.json beside this file says which."""

from onnx_vlm.runtime.triton.model import TritonPythonModel  # noqa: F401
'''


def write(bundle: Path, repository: Path, name: str, settings: dict[str, Any]) -> Path:
    """Add a model to a model repository.

    Args:
        bundle: the folder that an export wrote. Triton reads it there when it loads the model.
        repository: the folder that Triton is given with `--model-repository`; it is made if it is not there.
        name: the model's name for clients.
        settings: keywords of `load` (`provider`, `threads`, ...), and `max_rows` and `max_queue` of the scheduler.

    Returns:
        The model's folder.

    Raises:
        BundleError: if there is no bundle.
        InputError: if the name is invalid, or the repository has a model of that name.
    """
    manifest.load(bundle)
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name, re.ASCII):
        raise InputError(f"the name is {name!r:.80}; give letters, digits, _, . and -")
    folder = repository / name
    if folder.exists():
        raise InputError(f"{folder} exists; give another name, or remove it")
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL, encoding="utf-8")
    loaded = {"bundle": str(bundle.resolve()), **settings}
    (folder / "1" / "model.json").write_text(json.dumps(loaded, indent=2) + "\n", encoding="utf-8")
    (folder / "config.pbtxt").write_text(config(name), encoding="utf-8")
    return folder


def config(name: str) -> str:
    """The text of config.pbtxt: requests are answered in any number of responses, and batched by the model itself."""
    inputs = ",\n".join(
        f'  {{ name: "{field}", data_type: {kind}, dims: [ {size} ]{", optional: true" if optional else ""} }}'
        for field, (kind, size, optional) in INPUTS.items()
    )
    outputs = ",\n".join(
        f'  {{ name: "{field}", data_type: {kind}, dims: [ {size} ] }}' for field, (kind, size) in OUTPUTS.items()
    )
    return (
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 0\n'
        "model_transaction_policy { decoupled: true }\n"
        f"input [\n{inputs}\n]\noutput [\n{outputs}\n]\n"
        "instance_group [ { count: 1, kind: KIND_MODEL } ]\n"
    )
