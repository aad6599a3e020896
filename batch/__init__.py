"""Many rows: what `onnx_vlm.runtime.batch` has, by a shorter name."""

from __future__ import annotations

from ..runtime.batch import Batch, Predictor, ProcessorConfig, Spec, build_processor, run

__all__ = ["Batch", "Predictor", "ProcessorConfig", "Spec", "build_processor", "run"]
