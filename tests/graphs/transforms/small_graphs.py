"""Small graphs for the tests of transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_vlm.graphs.transforms import weights


def graph(nodes: list[ir.Node], inputs: list[ir.Value], outputs: list[ir.Value], **initializers: ir.Value) -> ir.Model:
    """A graph of opset 23 with these nodes."""
    return ir.Model(
        ir.Graph(inputs, outputs, nodes=nodes, initializers=list(initializers.values()), opset_imports={"": 23}),
        ir_version=10,
    )


def value(name: str, *shape: int | str) -> ir.Value:
    """A float32 value of a graph."""
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def run(model: ir.Model, path: Path, **inputs: np.ndarray) -> np.ndarray:
    """The first output of a graph, which is stored at `path`."""
    weights.write(weights.store(model, path))
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


class Recorded:
    """An array that notes how many of its rows were read at a time."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, index: Any) -> np.ndarray:
        self.read.append(len(self.array[index]))
        return self.array[index]
