"""Matrix products of 8-bit integers: int8 weights with a scale for each column, rows of activations rounded on the way.

For graphs that multiply many rows at a time, as vision encoders do. On a CPU without dot products of bytes it is about
twice as fast there as products with 8-bit blocks (`quantize_blocks`) of the same size, and faster than float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from .quantize_blocks import products, replace
from .weights import Streamed, Weight, add_initializer, slices

LARGEST = 127  #: the largest magnitude of a quantised integer
#: Of activations that have been rounded: their integers, and the largest magnitude of each row.
Rounded = dict[ir.Value, tuple[ir.Value, ir.Value]]
SMALLEST_DIVISOR = float(np.finfo(np.float32).tiny)  #: a row or column of zeros is divided by it


def quantize_columns(model: ir.Model) -> int:
    """Replace every MatMul with a weight (in, out) of the graph; returns how many there were.

    A row x of activations becomes the integers round(127 x / r), where r is its largest magnitude, so that a row's
    result depends on no other row. The product of integers is exact. Its columns are multiplied by the scales of the
    weight's columns, its rows by r / 127.
    """
    rows: Rounded = {}
    replaced = 0
    for node, weight in products(model):
        values, scales = (add_initializer(model, tensor) for tensor in _columns(weight.const_value))
        replace(model, node, integer_product(model, node, values, scales, rows))
        replaced += 1
    model.graph.opset_imports["com.microsoft"] = 1
    return replaced


def integer_product(
    model: ir.Model, before: ir.Node, values: ir.Value, scales: ir.Value, rounded: Rounded
) -> list[ir.Node]:
    """The nodes that compute what the product `before` computes of its activations, with integers (in, out) of int8 and
    the scales of columns (out,). What rounds the activations is added to the graph, and to `rounded`."""
    activations, result = before.inputs[0], before.outputs[0]
    if activations not in rounded:
        rounded[activations] = _quantized_rows(model, before, activations)
    integers, largest = rounded[activations]
    step = _constant(model, 1 / LARGEST)
    zero_point = _constant(model, LARGEST + 1, np.uint8)
    product = ir.node("MatMulIntegerToFloat", [integers, values, step, scales, zero_point], domain="com.microsoft")
    scaled = ir.node("Mul", [product.outputs[0], largest])
    _describe(product.outputs[0], f"{result.name}.product", ir.DataType.FLOAT, result.shape)
    return [product, scaled]


def _quantized_rows(model: ir.Model, before: ir.Node, activations: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Integers (..., in) as uint8, where 128 means zero, and the largest magnitude of each row (..., 1)."""
    magnitude = ir.node("Abs", [activations])
    largest = ir.node("ReduceMax", [magnitude.outputs[0], _constant(model, -1, np.int64, (1,))], {"keepdims": 1})
    divisor = ir.node("Max", [largest.outputs[0], _constant(model, SMALLEST_DIVISOR)])  # not by zero
    unit = ir.node("Div", [activations, divisor.outputs[0]])
    zero_point = _constant(model, LARGEST + 1, np.uint8)
    integers = ir.node("QuantizeLinear", [unit.outputs[0], _constant(model, 1 / LARGEST), zero_point])
    steps = {"magnitude": magnitude, "row_largest": largest, "divisor": divisor, "unit": unit, "numbers": integers}
    for name, node in steps.items():
        dtype = ir.DataType.UINT8 if node is integers else ir.DataType.FLOAT
        shape = activations.shape if node in (magnitude, unit, integers) else [*activations.shape[:-1], 1]
        _describe(node.outputs[0], f"{activations.name}.{name}", dtype, shape)
    model.graph.insert_before(before, list(steps.values()))
    return integers.outputs[0], divisor.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: Iterable[int | ir.SymbolicDim]) -> None:
    """Set name, type and shape of a value: a part of a split graph needs those of its inputs."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)


def _constant(model: ir.Model, value: float, dtype: type = np.float32, shape: tuple[int, ...] = ()) -> ir.Value:
    array = np.full(shape, value, dtype)
    return add_initializer(model, ir.tensor(array, name=f"constant.{array.dtype.name}.{value:g}"))


def _columns(weight: Weight) -> tuple[Streamed, Streamed]:
    """Integers (in, out) of a weight as int8, and the scale of each column (out,)."""
    rows, columns = weight.shape.numpy()

    def whole() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        values = np.empty((rows, columns), np.int8)
        scales = np.empty(columns, np.float32)
        for part in slices((columns, rows)):
            values[:, part], scales[part] = quantized(weight.columns(part))
        yield values, scales

    values = Streamed(f"{weight.name}.int8", ir.DataType.INT8, (rows, columns), whole)
    return values, Streamed(f"{weight.name}.scales", ir.DataType.FLOAT, (columns,), whole, index=1)


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise columns of a weight.

    Args:
        weight: the columns, laid out as (out, in), of float32.

    Returns:
        Their integers (in, out) of int8, and their scales (out,) of float32.
    """
    scales = np.maximum(np.abs(weight).max(1), SMALLEST_DIVISOR) / np.float32(LARGEST)
    values = weight / scales[:, None]
    return np.ascontiguousarray(np.rint(values, out=values).astype(np.int8).T), scales
