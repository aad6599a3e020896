"""Errors of the operating system as errors for a user, with the file and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..graphs import ExportError


@contextmanager
def named() -> Iterator[None]:
    """Turn an OSError into an ExportError; also usable as a decorator."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise ExportError(f"the operating system refused: {error}") from error
        raise ExportError(
            f"{error.filename}: {error.strerror}; choose another path, or make this one accessible to this user"
        ) from error
