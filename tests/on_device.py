"""A model whose decoder works as on a GPU, on the CPU: its cache, logits and moves stay in the device's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.inference.device_cache import Device
from onnx_vlm.runtime.providers.table import PROVIDERS


def on_device(bundle: Path, captures: bool = False) -> VLM:
    """The model; with `captures` its steps are as for a CUDA graph, which the CPU ignores."""
    vlm = load(bundle, provider="cpu", threads=1)
    engine = vlm.pipeline.engine
    resolved = {**engine.target.resolved, PROVIDERS["cuda"].ort_name: {"enable_cuda_graph": "1"} if captures else {}}
    target = replace(engine.target, resolved=resolved)
    positions = vlm.manifest.generation.max_positions
    engine._device = Device(engine._decoder, target, positions, vlm.manifest.cache == "copied")
    return vlm
