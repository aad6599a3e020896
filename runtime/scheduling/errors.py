"""Why a scheduler takes no request."""

from __future__ import annotations

from ...graphs import GenerationError


class QueueFullError(GenerationError):
    """As many requests wait as may."""


class ClosedError(GenerationError):
    """The scheduler takes no more requests."""
