"""Packages of extras, imported when they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ...graphs import InputError


def pyarrow(module: str, purpose: str) -> ModuleType:
    """A module of pyarrow.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{purpose} needs pyarrow ({error}); install it: pip install 'onnx-vlm[batch]'") from None
