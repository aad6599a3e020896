"""The runtime's tests run as on a machine that has nothing but its dependencies."""

from __future__ import annotations

import sys

import pytest

BLOCKED = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "onnx_vlm.export",
)


@pytest.fixture(autouse=True)
def only_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BLOCKED:
        monkeypatch.setitem(sys.modules, name, None)
