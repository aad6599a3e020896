"""Graphs of a few nodes as the bytes of an ONNX model, written without the onnx package, which the runtime never needs.

A model is a protocol buffer: fields, each a number and a wire type in one varint, then an integer (type 0) or a length
and bytes (type 2). The numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...graphs import TensorSpec

IR_VERSION, OPSET = 8, 13  #: old enough for every ONNX Runtime, new enough for every operator used
ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}  #: TensorProto.DataType


@dataclass(frozen=True)
class Node:
    """An operator of ONNX with integer attributes."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int] = field(default_factory=dict)


def model(nodes: Sequence[Node], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """The bytes of a model, as `onnxruntime.InferenceSession` takes them."""
    graph = b"".join(_bytes(1, _node(node)) for node in nodes) + _text(2, "graph")
    graph += b"".join(_bytes(11, _value(spec)) for spec in inputs)
    graph += b"".join(_bytes(12, _value(spec)) for spec in outputs)
    return _integer(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, _text(1, "") + _integer(2, OPSET))


def doubling() -> bytes:
    """One node that adds x (size,) to itself, for a provider to show that it runs."""
    return model([Node("Add", ("x", "x"), ("y",))], [_vector("x")], [_vector("y")])


def integer_product() -> bytes:
    """The product of `a` (m, k) of uint8 and `b` (k, n) of int8: `y` (m, n) of int32."""
    inputs = [TensorSpec("a", "uint8", ("m", "k")), TensorSpec("b", "int8", ("k", "n"))]
    return model([Node("MatMulInteger", ("a", "b"), ("y",))], inputs, [TensorSpec("y", "int32", ("m", "n"))])


def argmax(logits: TensorSpec, ids: str) -> bytes:
    """The id of the largest of `logits` (batch, kept, vocab): int64 (batch, kept)."""
    node = Node("ArgMax", (logits.name,), (ids,), {"axis": -1, "keepdims": 0})
    return model([node], [logits], [TensorSpec(ids, "int64", logits.shape[:2])])


def gather(buffers: Sequence[tuple[TensorSpec, TensorSpec]], rows: str) -> bytes:
    """For each pair of equal tensors, the second made of the rows of the first that `rows`, int64 (kept,), names."""
    nodes = [Node("Gather", (before.name, rows), (after.name,), {"axis": 0}) for before, after in buffers]
    before, after = zip(*buffers)
    selected = [TensorSpec(spec.name, spec.dtype, ("kept", *spec.shape[1:])) for spec in after]
    return model(nodes, [*before, TensorSpec(rows, "int64", ("kept",))], selected)


def _vector(name: str) -> TensorSpec:
    return TensorSpec(name, "float32", ("size",))


def _node(node: Node) -> bytes:
    names = b"".join(_text(1, name) for name in node.inputs) + b"".join(_text(2, name) for name in node.outputs)
    # An attribute: its name, its integer, and that it is an integer (2).
    attributes = (_text(1, name) + _integer(3, value) + _integer(20, 2) for name, value in node.attributes.items())
    return names + _text(4, node.operator) + b"".join(_bytes(5, attribute) for attribute in attributes)


def _value(spec: TensorSpec) -> bytes:
    sizes = (_integer(1, size) if isinstance(size, int) else _text(2, size) for size in spec.shape)
    shape = b"".join(_bytes(1, size) for size in sizes)
    tensor = _integer(1, ELEMENTS[spec.dtype]) + _bytes(2, shape)
    return _text(1, spec.name) + _bytes(2, _bytes(1, tensor))


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % (1 << 64))  # negative ones as 64 bits


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit says that more follow."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
