"""Refusals of the operating system as errors for a user: which file, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..graphs import ExportError


@contextmanager
def named() -> Iterator[None]:
    """Turn an OSError into an ExportError; to be used as a decorator too."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise ExportError(f"the operating system refused: {error}") from error
        raise ExportError(
            f"{error.filename}: {error.strerror}; choose another path, or make this one accessible to this user"
        ) from error
