"""A bundle with one weight zeroed and its checksums made anew, as by someone who means harm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_vlm.graphs import contract, manifest


def quantised_weights(bundle: Path) -> list[tuple[str, str]]:
    """Graph and name of every weight that is stored as integers with scales."""
    return [
        (graph, name.removesuffix(".scales"))
        for graph in contract.GRAPHS
        for name in ir.load(bundle / f"{graph}.onnx").graph.initializers
        if name.endswith(".scales")
    ]


@contextmanager
def zeroed(bundle: Path, graph: str, weight: str) -> Iterator[None]:
    """The scales of a weight are zero meanwhile."""
    path, made = bundle / f"{graph}.onnx", manifest.load(bundle)
    changed = [path, path.with_name(f"{path.name}.data")]
    before = {file: file.read_bytes() for file in changed}
    model = ir.load(path)
    value = model.graph.initializers[f"{weight}.scales"]
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        with changed[1].open("r+b") as file:
            file.seek(tensor.offset)
            file.write(bytes(tensor.nbytes))
    else:
        value.const_value = ir.tensor(np.zeros_like(tensor.numpy()), name=value.name)
        ir.save(model, path)
    sizes = {file.name: manifest.File(file.stat().st_size, manifest.sha256(file)) for file in changed}
    dataclasses.replace(made, files=made.files | sizes).save(bundle)
    try:
        yield
    finally:
        for file, data in before.items():
            file.write_bytes(data)
        made.save(bundle)
