"""A KV cache of int8: each number of a key or value head has a scale of its own, the same for all tokens.

GroupQueryAttention rounds new keys and values, rotated already, as it writes them, and reads all of them rounded. So
it makes no difference in how many calls a prompt is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from .. import contract

LARGEST = 127
BITS = 8
#: How much larger than any that was seen a value may be before it is cut off. On held-out pictures of the trained
#: checkpoints 1.25 cut off so much that the error of logits was up to six times that of 2; finer steps gain less.
HEADROOM = 2.0
#: A number of a head that hardly varied may be as large as this share of the head's largest.
LEAST_SHARE = 1 / 8
INPUTS = 14  #: of the operator, the two scales being the last


def add_ranges(model: ir.Model) -> dict[str, str]:
    """Add the largest magnitude of each number of each key and value head to a graph's outputs, (1, kv_heads, 1,
    head_dim); returns their names by the names of the cache inputs."""
    names = {}
    for node, past, present in list(_caches(model)):
        axes = ir.node("Constant", [], {"value": ir.tensor(np.array([0, 2]))})
        magnitude = ir.node("Abs", [present])
        largest = ir.node("ReduceMax", [magnitude.outputs[0], axes.outputs[0]], {"keepdims": 1})
        names[past.name] = f"{past.name}.largest"
        for made, value in ((axes, "axes"), (magnitude, "magnitude"), (largest, "largest")):
            made.outputs[0].name = f"{past.name}.{value}"
        largest.outputs[0].dtype = ir.DataType.FLOAT
        largest.outputs[0].shape = ir.Shape((1, past.shape[1], 1, past.shape[3]))
        model.graph.insert_after(node, [axes, magnitude, largest])
        model.graph.outputs.append(largest.outputs[0])
    return names


def scales(largest: np.ndarray) -> np.ndarray:
    """What int8 values are multiplied by, given the largest magnitudes that were seen (1, kv_heads, 1, head_dim)."""
    least = LEAST_SHARE * largest.max(-1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    return (HEADROOM / LARGEST * np.maximum(np.maximum(largest, least), tiny)).astype(np.float32)


def scale_name(past: str) -> str:
    """The name of the scales of a cache input."""
    return f"{past}.scale"


def rounded(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Keys or values (batch, kv_heads, tokens, head_dim) as the cache gives them back."""
    return np.clip(np.rint(values / scale), -LARGEST - 1, LARGEST) * scale


def quantize_cache(model: ir.Model, largest: Mapping[str, np.ndarray]) -> None:
    """Make the KV buffers of a decoder graph int8; `largest` has the magnitudes of each cache input."""
    for node, past, present in list(_caches(model)):
        past.dtype = present.dtype = ir.DataType.INT8
        part = contract.PARTS.index(past.name.rpartition(".")[2])
        scale = ir.Value(name=scale_name(past.name), const_value=ir.tensor(scales(largest[past.name])))
        scale.dtype, scale.shape = ir.DataType.FLOAT, scale.const_value.shape
        model.graph.register_initializer(scale)
        node.resize_inputs(INPUTS)
        node.replace_input_with(INPUTS - 2 + part, scale)
        node.attributes[f"{'kv'[part]}_quant_type"] = ir.AttrString(f"{'kv'[part]}_quant_type", "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", BITS)


def _caches(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
    """The node of each KV buffer, the buffer that it takes and the buffer that it returns."""
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            for past, present in zip(node.inputs[3:5], node.outputs[1:3]):
                yield node, past, present
