"""What an export changes in a bundle that it has written, by what the bundle computes: before the proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from ..graphs import contract, manifest
from . import bundle_manifest
from .calibration.pictures import Pictures


def compute_in_float16(folder: Path, description: manifest.Manifest, prompts: tuple[str, ...]) -> manifest.Manifest:
    """Make graphs with float16 weights compute in float16; returns the manifest of the changed graphs."""
    from .proof import float16_ranges, proof  # they run the bundle, which not every export does

    dataclasses.replace(description, files=bundle_manifest.list_files(folder, hashed=False)).save(folder)
    halves = [name for name in contract.GRAPHS if description.precision[name] == "fp16"]
    float32_nodes = float16_ranges.narrow(folder, halves, prompts, proof.images()[0])
    graphs = dict(description.graphs)
    if contract.DECODER in halves:
        graphs[contract.DECODER] = graphs[contract.DECODER].with_cache_dtype("float16")
    return dataclasses.replace(description, graphs=graphs, float32_nodes=float32_nodes)


def round_cache(folder: Path, description: manifest.Manifest, prompts: tuple[str, ...]) -> manifest.Manifest:
    """Give the decoder graph a KV cache of int8; returns the manifest of the changed graph."""
    from .proof import cache_ranges, proof  # they run the bundle, which not every export does

    floats = {name: value for name, value in description.precision.items() if name != contract.KV_CACHE}
    files = bundle_manifest.list_files(folder, hashed=False)
    dataclasses.replace(description, precision=floats, files=files).save(folder)
    cache_ranges.narrow(folder, prompts, proof.images())
    decoder = description.graphs[contract.DECODER].with_cache_dtype("int8")
    return dataclasses.replace(description, graphs={**description.graphs, contract.DECODER: decoder})


def calibrate(
    folder: Path,
    description: manifest.Manifest,
    decoder: ir.Model,
    pictures: Pictures,
    examples: tuple[str, ...],
    report: Callable[[str, int, int], None],
) -> manifest.Manifest:
    """Round the decoder's weights anew for the pictures; returns the manifest that says so."""
    from .calibration import calibrate

    floats = {name: value for name, value in description.precision.items() if name != contract.KV_CACHE}
    files = bundle_manifest.list_files(folder, hashed=False)
    dataclasses.replace(description, precision=floats, files=files).save(folder)
    made = calibrate.calibrate(folder, decoder, pictures, examples, lambda step: report(step, 0, 0))
    return dataclasses.replace(description, calibration=made)
