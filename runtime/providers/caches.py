"""The folder of caches: engines of TensorRT, bundles from URLs, shared weights."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "ONNX_VLM_CACHE"  #: names the folder of caches, if it is not to be in the user's


def cache_root() -> Path:
    """The folder of caches: that of the variable ONNX_VLM_CACHE, or onnx-vlm in the user's."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnx-vlm"
