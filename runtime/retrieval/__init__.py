"""Pages and queries to vectors, vectors to scores: what a bundle of the kind "embedding" is for."""

from __future__ import annotations

from .embedder import DTYPES, Embedder
from .late_interaction import late_interaction
from .pooling import pooled

__all__ = ["DTYPES", "Embedder", "late_interaction", "pooled"]
