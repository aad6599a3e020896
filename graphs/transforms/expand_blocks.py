"""A second graph of a decoder in blocks of 4 bits, which multiplies the same weights as columns of 8-bit integers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .. import expansion
from .quantize_columns import Rounded, integer_product

#: The file that holds the columns, by the second graph. There is none: a runtime gives them.
NOWHERE = "expanded-when-loaded"


def write_columns(path: Path) -> bool:
    """Write the second graph of the written one at `path`, and the table of what is to be expanded, beside it.

    Nothing is written, and False returned, where the graph has no product with blocks that can be expanded.
    """
    model = ir.load(path)
    rounded: Rounded = {}
    weights = []
    for node in list(model.graph):
        if node.op_type != "MatMulNBits" or not _can_be_expanded(node):
            continue
        blocks, values, scales = _columns(model, node)
        weights.append(blocks)
        nodes = integer_product(model, node, values, scales, rounded)
        old, new = node.outputs[0], nodes[-1].outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        stored = node.inputs[1:3]
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [old], [new])
        for value in stored:
            model.graph.initializers.pop(value.name)
    if weights:
        ir.save(model, path.with_name(expansion.GRAPH))
        expansion.Table(tuple(weights)).save(path.with_name(expansion.TABLE))
    return bool(weights)


def load_columns(path: Path) -> ir.Model:
    """The second graph of the written one at `path`, with weights that are expanded when they are asked for.

    Raises:
        BundleError: if the table is damaged.
    """
    stored = np.memmap(path.with_name(f"{path.name}.data"), np.uint8, "r")
    model = ir.load(path.with_name(expansion.GRAPH))
    for weight in expansion.load(path.with_name(expansion.TABLE), stored.size).weights:
        makes = {
            weight.columns_name: partial(_integers, weight, stored),
            weight.scales_name: partial(_units, weight, stored),
        }
        for name, make in makes.items():
            value = model.graph.initializers[name]
            value.const_value = ir.LazyTensor(make, value.dtype, value.shape, name=name)
    return model


def _integers(weight: expansion.Blocks, stored: np.ndarray) -> ir.Tensor:
    integers = np.empty((weight.rows + weight.rows % 2, weight.columns), np.int8)
    weight.expand(stored, integers)
    return ir.Tensor(integers[: weight.rows], name=weight.columns_name)


def _units(weight: expansion.Blocks, stored: np.ndarray) -> ir.Tensor:
    return ir.Tensor(weight.units(stored), name=weight.scales_name)


def _can_be_expanded(node: ir.Node) -> bool:
    bits, size = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    return (bits, size) == (4, expansion.BLOCK_SIZE) and all(
        isinstance(value.const_value, ir.ExternalTensor) and len(value.uses()) == 1 for value in node.inputs[1:3]
    )


def _columns(model: ir.Model, node: ir.Node) -> tuple[expansion.Blocks, ir.Value, ir.Value]:
    """Where a product's weight stands, and the initialisers that take its place."""
    packed, scales = node.inputs[1:3]
    rows, columns = (node.attributes[name].as_int() for name in ("K", "N"))
    blocks = expansion.Blocks(
        f"{packed.name}.columns",
        f"{packed.name}.units",
        rows,
        columns,
        packed.const_value.offset,
        scales.const_value.offset,
    )
    return (
        blocks,
        _given(model, blocks.columns_name, ir.DataType.INT8, (rows, columns)),
        _given(model, blocks.scales_name, ir.DataType.FLOAT, (columns,)),
    )


def _given(model: ir.Model, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """An initialiser that a runtime gives."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    tensor = ir.ExternalTensor(NOWHERE, 0, int(size), dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value
