"""Weights in blocks of 8 or 4 bits: products with a stored weight become MatMulNBits, quantised as they are written."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

#: Weights quantised at a time; each of some ten temporary arrays has this many elements.
AT_ONCE = 1 << 22
#: Where the largest weight of a block may come to lie, as a share of the range; the best for each block is kept.
REACHES = (1.0, 0.95, 0.9, 0.85, 0.8)


def quantize(model: ir.Model, bits: int, block_size: int) -> int:
    """Replace every MatMul with a weight (in, out) of the graph; returns how many there were.

    Args:
        bits: 8 or 4 for each weight; every `block_size` weights of a column share a float32 scale.
        block_size: 32, 64 or 128; the last block of a column is padded with zeros.
    """
    replaced = 0
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or not weight.is_initializer() or len(weight.shape) != 2:
            continue
        packed, scales = _values(model, weight, bits, block_size)
        rows, columns = weight.shape
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block_size, "accuracy_level": 4}
        product = ir.node("MatMulNBits", [node.inputs[0], packed, scales], attributes, domain="com.microsoft")
        output, old = product.outputs[0], node.outputs[0]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [product], [old], [output])
        if not weight.uses():
            model.graph.initializers.pop(weight.name)
        replaced += 1
    model.graph.opset_imports["com.microsoft"] = 1
    return replaced


def _values(model: ir.Model, weight: ir.Value, bits: int, block_size: int) -> tuple[ir.Value, ir.Value]:
    """The packed weights and scales of an initialiser, as initialisers that are computed when they are written."""
    rows, columns = weight.shape
    blocks, source, kept = math.ceil(rows / block_size), weight.const_value, {}

    def packed() -> np.ndarray:
        values, kept["scales"] = quantized(source.numpy().T, bits, block_size)
        return values

    def scales() -> np.ndarray:
        if "scales" not in kept:
            packed()
        return kept.pop("scales")

    return (
        _value(model, f"{weight.name}.q{bits}", (columns, blocks, block_size * bits // 8), ir.DataType.UINT8, packed),
        _value(model, f"{weight.name}.scales", (columns, blocks), ir.DataType.FLOAT, scales),
    )


def _value(
    model: ir.Model, name: str, shape: tuple[int, ...], dtype: ir.DataType, compute: Callable[[], np.ndarray]
) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.const_value = ir.LazyTensor(
        lambda: ir.Tensor(compute(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    model.graph.register_initializer(value)
    return value


def quantized(weight: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, in) as MatMulNBits stores them, a weight being (value - 2 ** (bits - 1)) * scale.

    Returns:
        Values (out, blocks, block_size * bits / 8) of uint8, two of 4 bits in a byte, the first in its lower half; and
        scales (out, blocks) of float32.
    """
    columns, rows = weight.shape
    blocks = math.ceil(rows / block_size)
    packed = np.empty((columns, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((columns, blocks), np.float32)
    step = max(1, AT_ONCE // (blocks * block_size))
    for start in range(0, columns, step):
        some = slice(start, start + step)
        padded = np.zeros((len(packed[some]), blocks * block_size), np.float32)
        padded[:, :rows] = weight[some]
        values, scales[some] = _best(padded.reshape(-1, blocks, block_size), bits)
        values = (values + (1 << (bits - 1))).astype(np.uint8)
        packed[some] = values if bits == 8 else values[..., ::2] | values[..., 1::2] << 4
    return packed, scales


def _best(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers (out, blocks, size) and scales (out, blocks) of the least squared error among several scales a block.

    The weight of largest magnitude sets the sign of the scale, so that it can use the one value more of the negative
    side. After rounding, the scale is the one that fits the integers best.
    """
    half = 1 << (bits - 1)
    extreme = np.take_along_axis(weights, np.abs(weights).argmax(-1, keepdims=True), -1)
    best, best_scale, least = np.zeros_like(weights), np.zeros_like(extreme), np.full_like(extreme, np.inf)
    for reach in REACHES if bits < 8 else REACHES[:1]:
        scale = extreme / -(half * reach)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.clip(np.rint(np.where(scale == 0, 0, weights / scale)), -half, half - 1)
            fitted = (weights * values).sum(-1, keepdims=True) / (values * values).sum(-1, keepdims=True)
        fitted = np.nan_to_num(fitted)
        error = np.square(weights - values * fitted).sum(-1, keepdims=True)
        better = error < least
        best, best_scale, least = (
            np.where(better, *pair) for pair in ((values, best), (fitted, best_scale), (error, least))
        )
    return best, best_scale[..., 0]
