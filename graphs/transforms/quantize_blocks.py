"""Weights in blocks of 8 or 4 bits: products with a stored weight become MatMulNBits, quantised as they are written."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..expansion import BLOCK_SIZE, LARGEST_MULTIPLE
from .weights import Source, Streamed, Weight, add_initializer, slices

BLOCK_SIZES = (32, 64, 128)
#: Candidates for the largest weight of a block, as a share of the largest integer; the best is used.
#: Beyond 1 that weight is clipped and the others are stored more finely. With 4 bits the error is at most 1.3 % above
#: that of 12 candidates from 0.85 to 1.4.
REACHES = (0.9, 1.0, 1.05, 1.15)
NEXT_TO_NOTHING = np.float32(1e-30)  #: a block whose weights are all smaller is stored as zeros


def quantize_blocks(model: ir.Model, bits: int, block_size: int) -> int:
    """Replace every MatMul with a weight (in, out) of the graph; returns how many there were.

    Args:
        bits: 8 or 4 for each weight; every `block_size` weights of a column share a float32 scale.
        block_size: 32, 64 or 128; the last block of a column is padded with zeros.
    """
    replaced = 0
    for node, weight in products(model):
        values, scales = (add_initializer(model, tensor) for tensor in _blocks(weight.const_value, bits, block_size))
        rows, columns = weight.shape
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block_size, "accuracy_level": 4}
        product = ir.node("MatMulNBits", [node.inputs[0], values, scales], attributes, domain="com.microsoft")
        replace(model, node, [product])
        replaced += 1
    model.graph.opset_imports["com.microsoft"] = 1
    return replaced


def products(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Every MatMul of the graph with a stored weight (in, out), and that weight."""
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and len(weight.shape) == 2:
            yield node, weight


def replace(model: ir.Model, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Replace a product by `nodes`, the last of which returns its result. Its weight goes if nothing else uses it."""
    weight, old, new = node.inputs[1], node.outputs[0], nodes[-1].outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [old], [new])
    if not weight.uses():
        model.graph.initializers.pop(weight.name)


class Packed(Streamed):
    """The packed values of `weight`."""

    weight: Weight


def _blocks(weight: Weight, bits: int, block_size: int) -> tuple[Packed, Streamed]:
    """Packed values and scales of a weight."""
    rows, columns = weight.shape.numpy()
    blocks = math.ceil(rows / block_size)

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (quantized(weight.columns(part), bits, block_size) for part in slices((columns, rows)))

    shape = (columns, blocks, block_size * bits // 8)
    values = Packed(f"{weight.name}.q{bits}", ir.DataType.UINT8, shape, pieces)
    values.weight = weight
    return values, Streamed(f"{weight.name}.scales", ir.DataType.FLOAT, shape[:2], pieces, index=1)


def quantized(weight: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, in) as MatMulNBits stores them, a weight being (value - 2 ** (bits - 1)) * scale.

    Returns:
        Values (out, blocks, block_size * bits / 8) of uint8, two of 4 bits in a byte, the first in its lower half; and
        scales (out, blocks) of float32.
    """
    columns, rows = weight.shape
    blocks = math.ceil(rows / block_size)
    if rows % block_size:
        weight = np.pad(weight, ((0, 0), (0, blocks * block_size - rows)))
    weights = np.ascontiguousarray(weight).reshape(-1, block_size)
    values, scales = _best(weights, bits)
    if bits == 4 and block_size == BLOCK_SIZE:
        values, scales = _with_multiples(weights, scales.reshape(columns, blocks))
    return packed(values.reshape(columns, -1), bits, block_size), scales.reshape(columns, blocks)


def packed(values: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """Integers (out, in), which it changes, as `quantized` returns them."""
    values += 1 << (bits - 1)
    columns, rows = values.shape
    stored = np.full((columns, -(-rows // block_size) * block_size), 1 << (bits - 1), np.uint8)
    stored[:, :rows] = values
    if bits == 4:  # two neighbours are the halves of a 16-bit integer; its lower byte gets both
        pairs = stored.view("<u2")
        stored = (pairs | pairs >> 4).astype(np.uint8)
    return stored.reshape(columns, -1, block_size * bits // 8)


def dequantized(stored: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The weights (out, blocks * block_size) of float32 that `quantized` stored; the last block's padding included."""
    values = np.stack([stored & 15, stored >> 4], -1).reshape(*scales.shape, -1) if bits == 4 else stored
    restored = values.astype(np.float32)
    restored -= 1 << (bits - 1)
    restored *= scales[..., None]
    return restored.reshape(len(scales), -1)


def _best(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers (blocks, size) and scales (blocks,) with the least squared error among several scales for each block.

    The weight of largest magnitude sets the sign of the scale, because the negative side has one integer more. After
    rounding weights w to integers v, the best scale is wv / vv, and its error is ww - wv * wv / vv.
    """
    half = 1 << (bits - 1)
    extreme = np.take_along_axis(weights, np.abs(weights).argmax(1)[:, None], 1)
    extreme[np.abs(extreme) < NEXT_TO_NOTHING] = 1  # its weights round to zero; their scale would overflow
    unit = -half / extreme
    weights = weights * unit
    reaches = np.array(REACHES if bits < 8 else (1.0,), np.float32)
    values = np.empty_like(weights)
    wv, vv = np.empty((2, len(reaches), len(weights)), np.float32)
    for index, reach in enumerate(reaches):
        _round(weights, reach, half, values)
        np.einsum("ij,ij->i", weights, values, out=wv[index])
        np.einsum("ij,ij->i", values, values, out=vv[index])
    scales = wv / np.maximum(vv, 1)
    best = (wv * scales).argmax(0)
    if len(reaches) > 1:
        _round(weights, reaches[best, None], half, values)
    return values, np.take_along_axis(scales, best[None], 0)[0] / unit[:, 0]


def _with_multiples(weights: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of blocks of 4 bits whose scales (columns, blocks) are made whole multiples of one number a
    column, as `expansion` wants them. The error of random weights grows by 0.7 to 1.6 %."""
    units = np.abs(scales).max(1, keepdims=True) / np.float32(LARGEST_MULTIPLE)
    multiples = np.rint(scales / np.where(units > 0, units, 1))
    multiples = np.where(multiples == 0, np.sign(scales), multiples)
    steps = (multiples * units).reshape(-1, 1)
    values = np.empty_like(weights)
    _round(weights, 1 / np.where(steps == 0, 1, steps), 8, values)
    wv = np.einsum("ij,ij->i", weights, values).reshape(scales.shape) * multiples
    vv = np.einsum("ij,ij->i", values, values).reshape(scales.shape) * multiples**2
    units = wv.sum(1, keepdims=True) / np.maximum(vv.sum(1, keepdims=True), 1)  # the best for these integers
    return values, multiples * units


def _round(weights: np.ndarray, reach: np.ndarray, half: int, values: np.ndarray) -> None:
    """Write the integers of weights into `values`, from -half to half - 1."""
    np.multiply(weights, reach, out=values)
    np.rint(values, out=values)
    np.clip(values, -half, half - 1, out=values)


def quantized_rows(name: str, source: Source) -> Streamed:
    """A table (rows, width) as uint8 (rows, width + 4).

    A row holds its int8 values, then the bytes of the float32 scale that they are multiplied by.
    """
    rows, width = source.shape

    def packed() -> Iterator[tuple[np.ndarray]]:
        for part in slices(source.shape):
            values = source[part]
            scale = np.maximum(np.abs(values).max(-1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
            integers = np.rint(values / scale).astype(np.int8)
            yield (np.concatenate([integers.view(np.uint8), scale.view(np.uint8)], -1),)

    return Streamed(name, ir.DataType.UINT8, (rows, width + 4), packed)
