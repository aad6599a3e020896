"""Bundle to answers, with NumPy and ONNX Runtime alone."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its packages report to Microsoft; it reads this when imported
try:
    import onnxruntime  # noqa: F401  # before the modules that need it, for the error
except ImportError as error:
    raise ImportError(
        "onnxruntime is not installed; install one: pip install 'onnx-vlm[cpu]' or pip install 'onnx-vlm[gpu]'"
    ) from error

from ..graphs import BundleError, GenerationError, InputError, ProviderError, VLMError
from .chat import Chat
from .generation.logprobs import TokenLogprob
from .grounding.drawing import draw
from .grounding.types import Box, Entity, Mask
from .limits import Limits
from .model import VLM, load
from .options import Options
from .results import Generation, Score
from .retrieval import late_interaction
from .stream import Stream

__all__ = [
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
