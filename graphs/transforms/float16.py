"""16-bit floats: weights stored in them, computation in float16 with parts left in float32."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .. import contract
from .weights import KEPT_IN_GRAPH, Weight

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
MASKED = float(np.finfo(np.float32).max)  #: magnitude of what masks add to the scores of hidden keys
#: Operators that always compute in float32: sums over many values, which may overflow although their result does not;
#: squares and roots of a norm, which underflow; operators without a float16 kernel; pooling and transposes, because
#: ONNX Runtime 1.31 crashes when it changes their layout in float16. So do reshapes next to them and nodes between.
ALWAYS_FLOAT = {
    "AveragePool",
    "Pow",
    "Reciprocal",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Resize",
    "Sqrt",
    "Transpose",
}


def store(model: ir.Model, dtype: ir.DataType) -> int:
    """Store the source model's weights as `dtype` and cast them to float32 where they are used; returns how many.

    Computed values (rotary tables, folded norms) stay float32, so that a checkpoint of this type loses nothing.
    """
    stored = 0
    for value in list(model.graph.initializers.values()):
        weight = value.const_value
        if not isinstance(weight, Weight) or isinstance(weight.source, np.ndarray) or value.dtype != FLOAT:
            continue
        if weight.nbytes <= KEPT_IN_GRAPH:
            continue
        cast = ir.node("Cast", [value], {"to": FLOAT})
        wide = cast.outputs[0]
        wide.name, wide.dtype, wide.shape = f"{value.name}.wide", FLOAT, value.shape
        value.replace_all_uses_with(wide)
        cast.replace_input_with(0, value)
        value.const_value, value.dtype = weight.as_dtype(dtype), dtype
        model.graph.insert_before(model.graph[0], cast)
        stored += 1
    return stored


def add_ranges(model: ir.Model) -> dict[str, str]:
    """Add the largest magnitude of each value to a graph's outputs; returns their names by the names of the values."""
    names = {}
    for node in list(model.graph):
        for value in node.outputs:
            if value.dtype != FLOAT or contract.is_present(value.name) or _is_weight(node):
                continue
            magnitude = ir.node("Abs", [value])
            largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
            names[value.name] = largest.outputs[0].name = f"{value.name}.largest"
            magnitude.outputs[0].name = f"{value.name}.magnitude"
            largest.outputs[0].dtype, largest.outputs[0].shape = FLOAT, ir.Shape(())
            model.graph.insert_after(node, [magnitude, largest])
            model.graph.outputs.append(largest.outputs[0])
    return names


def too_large(model: ir.Model, largest: dict[str, float], limit: float) -> list[str]:
    """Names of the nodes with an input or output above `limit`; `largest` has the largest magnitude of each value.

    A mask's lowest float32 is none: in float16 it becomes minus infinity, which hides a key as well.
    """
    large = {name for name, magnitude in largest.items() if not magnitude <= limit and magnitude != MASKED}
    return [
        node.name
        for node in model.graph
        if not _is_weight(node)
        and any(value is not None and value.name in large for value in (*node.inputs, *node.outputs))
    ]


def compute_in_float16(model: ir.Model, keep: Collection[str]) -> None:
    """Compute in float16, except in the nodes named in `keep`; weights must be stored as float16.

    KV buffers become float16; the other inputs and outputs keep their types. Casts are added where nodes of different
    precision meet.
    """
    wide = _in_float(model, keep)
    versions: dict[tuple[int, ir.DataType], ir.Value] = {}
    for value in model.graph.inputs:
        if value.dtype == FLOAT and contract.is_past(value.name):
            value.dtype = HALF
    for node in list(model.graph):
        if _is_weight(node):
            versions[id(node.outputs[0]), HALF] = node.inputs[0]
            continue
        dtype = FLOAT if node in wide else HALF
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, HALF) and value.dtype != dtype:
                if (id(value), dtype) not in versions:
                    versions[id(value), dtype] = _converted(model, node, value, dtype)
                node.replace_input_with(index, versions[id(value), dtype])
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.dtype = dtype
        if node.op_type == "Cast" and node.outputs[0].dtype == dtype:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
    for index, value in enumerate(model.graph.outputs):
        if value.dtype == HALF and not contract.is_present(value.name):
            name = value.name
            cast = ir.node("Cast", [value], {"to": FLOAT})
            output = cast.outputs[0]
            value.name, output.name, output.dtype, output.shape = f"{name}.half", name, FLOAT, value.shape
            model.graph.append(cast)
            model.graph.outputs[index] = output
    for node in list(model.graph):
        if _is_weight(node) and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)


def _in_float(model: ir.Model, keep: Collection[str]) -> set[ir.Node]:
    """The nodes that stay in float32."""
    wide = {node for node in model.graph if node.name in keep or node.op_type in ALWAYS_FLOAT}
    grown = True
    while grown:
        beside = {other for node in wide for other in (*node.predecessors(), *node.successors())}
        beside = {
            node
            for node in beside
            if node.op_type == "Reshape" or wide.issuperset((*node.predecessors(), *node.successors()))
        }
        grown = bool(beside - wide)
        wide |= beside
    return wide


def _is_weight(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.inputs[0].is_initializer()


def _converted(model: ir.Model, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """`value` as `dtype`: a constant converted, or a Cast before `node`."""
    name = f"{value.name}.{'wide' if dtype == FLOAT else 'half'}"
    if value.is_initializer():
        converted = np.clip(value.const_value.numpy(), -LARGEST, LARGEST).astype(dtype.numpy())
        tensor = ir.tensor(converted, dtype=dtype, name=name)
        constant = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
        model.graph.register_initializer(constant)
        return constant
    cast = ir.node("Cast", [value], {"to": dtype})
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = name, dtype, value.shape
    model.graph.insert_before(node, cast)
    return output
