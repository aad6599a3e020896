"""The command `onnx-vlm`."""

from .app import main

__all__ = ["main"]
