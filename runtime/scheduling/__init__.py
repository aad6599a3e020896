"""Continuous batching: many requests answered together over one KV cache, each as if it were alone."""

from __future__ import annotations

from .answer_stream import AnswerStream, Piece
from .errors import ClosedError, QueueFullError
from .scheduler import Scheduler
from .state import State

__all__ = ["AnswerStream", "ClosedError", "Piece", "QueueFullError", "Scheduler", "State"]
