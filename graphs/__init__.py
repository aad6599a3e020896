"""The contract that export and runtime share: what a bundle contains and what its graphs take and give."""

from __future__ import annotations

from .contract import GraphSpec, TensorSpec
from .errors import (
    BundleError,
    CheckpointError,
    ExportError,
    GenerationError,
    InputError,
    ProviderError,
    UnknownProviderError,
    VLMError,
)
from .manifest import FORMAT, Manifest

__all__ = [
    "FORMAT",
    "BundleError",
    "CheckpointError",
    "ExportError",
    "GenerationError",
    "GraphSpec",
    "InputError",
    "Manifest",
    "ProviderError",
    "TensorSpec",
    "UnknownProviderError",
    "VLMError",
]
