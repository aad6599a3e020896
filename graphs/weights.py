"""Weights of a graph: attached as tensors that are read when they are written, laid out, streamed to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

Read = Callable[[str], np.ndarray]

#: Initialisers of no more bytes than this stay in the .onnx file, where shape inference can see them.
KEPT_IN_GRAPH = 1024


def attach(model: ir.Model, read: Read) -> None:
    """Give every initialiser the value that `read` returns for its name, whenever that is asked for."""
    for name, value in model.graph.initializers.items():
        value.const_value = _lazy(name, value.dtype, value.shape, lambda name=name: read(name))


def fold_transposes(model: ir.Model) -> int:
    """Store weights the way they are used, so that no Transpose of an initialiser is left; returns how many there were.

    PyTorch keeps a linear layer's weight as (out, in), MatMul wants (in, out).
    """
    folded = 0
    for node in list(model.graph):
        weight = node.inputs[0] if node.inputs else None
        if node.op_type != "Transpose" or weight is None or not weight.is_initializer() or len(weight.shape) != 2:
            continue
        if (perm := node.attributes.get("perm")) is not None and list(perm.as_ints()) != [1, 0]:
            continue
        source, output = weight.const_value, node.outputs[0]
        value = ir.Value(name=f"{weight.name}.T", type=weight.type, shape=ir.Shape(weight.shape[::-1]))
        value.const_value = _lazy(value.name, weight.dtype, value.shape, lambda source=source: source.numpy().T)
        if value.name in model.graph.initializers:
            value = model.graph.initializers[value.name]
        else:
            model.graph.register_initializer(value)
        output.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            model.graph.initializers.pop(weight.name)
        folded += 1
    return folded


def stored_bytes(model: ir.Model) -> int:
    """How many bytes of weights `save` writes beside the graph."""
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values())
    return sum(size for size in sizes if size > KEPT_IN_GRAPH)


def save(model: ir.Model, path: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write `path` and, beside it, `<name>.data` with every weight, one at a time.

    `progress` is told the bytes written.
    """

    def tell(tensor: ir.TensorProtocol, _) -> None:
        if progress is not None:
            progress(tensor.nbytes)

    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=KEPT_IN_GRAPH, callback=tell)


def _lazy(name: str, dtype: ir.DataType, shape: ir.Shape, read: Callable[[], np.ndarray]) -> ir.LazyTensor:
    def load() -> ir.Tensor:
        return ir.Tensor(np.ascontiguousarray(read(), dtype.numpy()), name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=shape, name=name)
