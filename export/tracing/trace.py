"""Trace a PyTorch module with fake weights to an ONNX graph that follows a `GraphSpec`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import onnx_ir as ir
import torch

from ...graphs import GraphSpec, contract
from .fast_export import fast_export
from .layers import unrolled
from .optimize import quiet, simplify
from .patching import FAKE_TENSORS, alone, require, without_initialisation

# Sizes to trace with. They differ from each other and from 1, so that none is mistaken for another or for a constant.
EXAMPLE_SIZES = {
    contract.BATCH: 2,
    contract.SEQUENCE: 7,
    contract.KEPT: 3,
    contract.CAPACITY: 41,
    contract.TILES: 5,
    contract.MASKS: 6,
}


@contextmanager
def fake_weights() -> Iterator[None]:
    """Make tensors that have shapes but no memory meanwhile, so that a model of any size is built and traced quickly.

    Only one thread at a time runs in this context; the others wait.

    Raises:
        ExportError: if the installed torch has no fake tensors where they are expected.
    """
    fake_tensors = require(FAKE_TENSORS)
    with alone(), fake_tensors(), without_initialisation():
        yield


class _Positional(torch.nn.Module):
    """Takes its inputs by position, so that one rule for dynamic shapes serves every module."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs)


def trace(module: torch.nn.Module, spec: GraphSpec, opset: int = 23) -> ir.Model:
    """The graph of a module built within `fake_weights()`, with the first output of `spec`, simplified.

    Initialisers that are named after the module's parameters and buffers have no values yet.
    """
    return unrolled(module, lambda: _whole(module, spec, opset))


def _whole(module: torch.nn.Module, spec: GraphSpec, opset: int) -> ir.Model:
    inputs = tuple(
        torch.zeros(tensor.sized(**EXAMPLE_SIZES), dtype=getattr(torch, tensor.dtype)) for tensor in spec.inputs
    )
    dims = {name: torch.export.Dim(name) for name in EXAMPLE_SIZES}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in spec.inputs
    )
    export = partial(
        torch.onnx.export,
        _Positional(module).eval(),
        inputs,
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=(shapes,),
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=[tensor.name for tensor in spec.outputs[:1]],
    )
    with quiet("torch.onnx"):
        try:
            with fast_export():
                program = export()
        except torch.onnx.OnnxExporterError:
            program = export()
    graph = program.model.graph
    for name in list(graph.initializers):
        value = graph.initializers.pop(name)
        value.name, value.const_value = name.removeprefix("module."), None
        graph.initializers.add(value)
    simplify(program.model)  # now, while it has few layers
    return program.model
