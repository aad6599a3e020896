"""The weights of a written bundle as the source model's parameters: dequantised, in slices, as they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import numpy as np
import onnx_ir as ir

from ...graphs import contract, manifest
from ...graphs.transforms import quantize_blocks, quantize_cache
from ...graphs.transforms.weights import Source, in_order, slices
from ...runtime.inference import token_embeddings
from ..checkpoint.safetensors_files import Stored
from ..families.registry import ModelParts

KINDS = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
}
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Rows:
    """A parameter whose rows are computed from what is stored."""

    shape: tuple[int, ...]
    read: Callable[[slice], np.ndarray]

    def __getitem__(self, rows: slice | EllipsisType) -> np.ndarray:
        return np.ascontiguousarray(self.read(slice(None) if rows is ... else rows), np.float32)


def rounded_weights(folder: Path, parts: ModelParts) -> dict[int, Source]:
    """The parameters that a bundle stores rounded, by their `id`; its embedding table is not among them."""
    rounded: dict[int, Source] = {}
    for name in contract.GRAPHS:
        initializers = ir.load(folder / f"{name}.onnx").graph.initializers
        for parameter_name, parameter in parts.modules[name].named_parameters(remove_duplicate=False):
            source = _rounded(initializers, parameter_name, tuple(parameter.shape))
            if source is not None:
                rounded[id(parameter)] = source
    return rounded


def cache_scales(folder: Path) -> list[np.ndarray]:
    """What a bundle multiplies int8 keys and values by, (1, kv_heads, 1, head_dim) each: of the first layer's keys, of
    its values, and so on; empty where the cache is not rounded."""
    initializers = ir.load(folder / f"{contract.DECODER}.onnx").graph.initializers
    pairs = manifest.read(folder).graphs[contract.DECODER].cache_pairs()
    names = [quantize_cache.scale_name(past.name) for past, _ in pairs]
    return [initializers[name].const_value.numpy() for name in names if name in initializers]


def embedding_table(folder: Path) -> Source:
    """The rows of a bundle's embedding table."""
    path = folder / contract.EMBED_TOKENS
    stored = np.load(path, mmap_mode="r")
    width = token_embeddings.dequantized_rows(stored[:1]).shape[1]
    return Rows(
        (len(stored), width), lambda rows: token_embeddings.dequantized_rows(np.load(path, mmap_mode="r")[rows])
    )


def relative_error(rounded: Source, exact: Source) -> float:
    """The norm of what rounding changed, by that of the weights; 0 where nothing changed."""
    changed = total = 0.0
    parts = slices(exact.shape)
    for values, differences in in_order(lambda rows: (exact[rows], rounded[rows] - exact[rows]), parts):
        changed += float(np.vdot(differences, differences))
        total += float(np.vdot(values, values))
    return (changed / max(total, float(np.finfo(np.float32).tiny))) ** 0.5


def _rounded(initializers: dict[str, ir.Value], parameter: str, shape: tuple[int, ...]) -> Source | None:
    """A parameter as a graph stores it, None where that is exact or elsewhere."""
    for name, transposed in ((f"{parameter}.T", True), (parameter, False)):
        if f"{name}.scales" in initializers:
            # Quantised weights are (out, in), and so is a parameter that was transposed for its matmul.
            read = _dequantized(initializers, name, shape[transposed])
            return Rows(shape, read if transposed else _turned(read))
        if name in initializers and initializers[name].dtype in HALVES:
            stored = _stored(initializers[name])
            return Rows(shape, _turned(stored.__getitem__) if transposed else stored.__getitem__)
    return None


def _dequantized(initializers: dict[str, ir.Value], name: str, width: int) -> Callable[[slice], np.ndarray]:
    """Reads rows (out, in) of a quantised weight."""
    scales = _stored(initializers[f"{name}.scales"])
    if f"{name}.int8" in initializers:
        values = _stored(initializers[f"{name}.int8"])
        return lambda rows: values[:, rows].T * scales[rows][:, None]
    bits = next(bits for bits in (4, 8) if f"{name}.q{bits}" in initializers)
    packed = _stored(initializers[f"{name}.q{bits}"])
    return lambda rows: quantize_blocks.dequantized(packed[rows], scales[rows], bits)[:, :width]


def _turned(read: Callable[[slice], np.ndarray]) -> Callable[[slice], np.ndarray]:
    return lambda rows: read(slice(None)).T[rows]


def _stored(value: ir.Value) -> Source:
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    return Stored(Path(tensor.path), tensor.offset, KINDS[tensor.dtype], tuple(tensor.shape.numpy()))
