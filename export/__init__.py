"""Checkpoint to bundle. Needs torch and transformers; what it writes needs neither."""

from __future__ import annotations

from .bundle import export_model
from .family import register

__all__ = ["export_model", "register"]
