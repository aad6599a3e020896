"""Errors for a user; each says what was wrong, with which value, what was allowed, and what to do.

They are here because export and runtime raise them alike.
"""

from __future__ import annotations


class VLMError(Exception):
    """Base of every error meant for a user. `exit_status` is what the command ends with."""

    exit_status = 1


class InputError(VLMError, ValueError):
    """A prompt, image or option that cannot be used."""

    exit_status = 2


class BundleError(VLMError):
    """A bundle that is incomplete, damaged or of another format."""

    exit_status = 2


class CheckpointError(VLMError):
    """A checkpoint that cannot be exported: invalid, of an unsupported type, or contradicting its own config."""

    exit_status = 2


class ExportError(VLMError):
    """An export that cannot be carried out, such as one over an existing bundle."""

    exit_status = 2


class ProviderError(VLMError):
    """An execution provider that is unknown or does not load."""


class UnknownProviderError(ProviderError, InputError):
    """An unknown execution provider, or one that cannot do what is asked: bad input, not a failure."""


class GenerationError(VLMError):
    """A failure while the model ran."""


#: Packages of the extra `export`, by the names under which they are imported.
EXPORT_PACKAGES = (
    "filelock",
    "huggingface_hub",
    "ml_dtypes",
    "num2words",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "timm",
    "torch",
    "transformers",
)


def explain_import_error(error: ImportError, purpose: str) -> str:
    """Why `purpose` failed with an ImportError, and what to do: install the extra `export` where it is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXPORT_PACKAGES:
        return f"{purpose} needs {error.name}; install it: pip install 'onnx-vlm[export]'"
    return f"{purpose} fails with the installed packages: {error}; install the versions that onnx-vlm is tested with"
