"""Checkpoint to bundle. Needs torch and transformers; what it writes needs neither."""

from __future__ import annotations

from .tracing.torchvision_import import make_torchvision_importable

make_torchvision_importable()  # transformers imports torchvision wherever it finds it

from .bundle import export_model  # noqa: E402
from .families.registry import register  # noqa: E402

__all__ = ["export_model", "register"]
