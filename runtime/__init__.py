"""Bundle to answers, with NumPy and ONNX Runtime alone."""

from __future__ import annotations

from ..graphs import BundleError, GenerationError, InputError, ProviderError, VLMError
from .drawing import draw
from .entities import Entity
from .grounding import Box, Mask
from .model import VLM, load
from .options import Options
from .results import Generation
from .stream import Stream

__all__ = [
    "VLM",
    "Box",
    "BundleError",
    "Entity",
    "Generation",
    "GenerationError",
    "InputError",
    "Mask",
    "Options",
    "ProviderError",
    "Stream",
    "VLMError",
    "draw",
    "load",
]
