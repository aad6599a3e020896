"""Many rows: a folder of images or a table of prompts in, a table of answers out, each row once."""

from __future__ import annotations

from .predictor import Predictor, ProcessorConfig, build_processor
from .run import Batch, run
from .spec import Spec

__all__ = ["Batch", "Predictor", "ProcessorConfig", "Spec", "build_processor", "run"]
