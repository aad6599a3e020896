"""Bundle to answers, with NumPy and ONNX Runtime alone."""

from __future__ import annotations

from ..graphs import BundleError, GenerationError, InputError, ProviderError, VLMError
from .entities import Entity
from .grounding import Box, draw
from .model import VLM, Generation, load

__all__ = [
    "VLM",
    "Box",
    "BundleError",
    "Entity",
    "Generation",
    "GenerationError",
    "InputError",
    "ProviderError",
    "VLMError",
    "draw",
    "load",
]
