"""The precision of each part of a bundle: chosen, and applied to graphs and the embedding table."""

from __future__ import annotations

import onnx_ir as ir

from ..graphs import ExportError, contract
from ..graphs.precision import CACHES, PRECISIONS, Precision
from ..graphs.transforms import float16, quantize_blocks, quantize_columns
from ..graphs.transforms.weights import Source, Streamed, Weight

EMBED_TOKENS = "embed_tokens"  #: the table's name among the precisions


FLOAT_CACHE = "float"  #: a KV cache of the floats that the decoder computes with


def choose_precisions(decoder: str, vision: str | None, block_size: int, kv_cache: str = FLOAT_CACHE) -> dict[str, str]:
    """The precision of each graph, of the embedding table, and of the KV cache where it is rounded.

    Raises:
        ExportError: for an unknown precision or block size, or a cache that does not go with the precision.
    """
    vision = vision or ("int8" if decoder == "int4" else decoder)
    for name in (decoder, vision):
        if name not in PRECISIONS:
            raise ExportError(f"precision {name!r} is not supported; supported: {', '.join(PRECISIONS)}")
    if block_size not in quantize_blocks.BLOCK_SIZES:
        allowed = ", ".join(map(str, quantize_blocks.BLOCK_SIZES))
        raise ExportError(f"a block_size of {block_size} is not supported; supported: {allowed}")
    caches = (FLOAT_CACHE, *CACHES)
    if kv_cache not in caches:
        raise ExportError(f"a kv_cache of {kv_cache!r} is not supported; supported: {', '.join(caches)}")
    if kv_cache != FLOAT_CACHE and decoder == "fp16":
        raise ExportError(
            f"a kv_cache of {kv_cache} is for decoders that compute in float32; choose a precision of"
            f" {', '.join(name for name in PRECISIONS if name != 'fp16')}"
        )
    return {
        contract.VISION_ENCODER: vision,
        contract.PROJECTOR: vision,
        contract.DECODER: decoder,
        EMBED_TOKENS: decoder if PRECISIONS[decoder].dtype else "int8",
        **({} if kv_cache == FLOAT_CACHE else {contract.KV_CACHE: kv_cache}),
    }


def store_weights(model: ir.Model, name: str, precision: str, block_size: int) -> None:
    """Store a graph's weights in a precision. One of 16-bit floats still computes in float32.

    The decoder multiplies a row at a time, for which blocks are best; the others many rows, for which whole rows are.
    """
    row = PRECISIONS[precision]
    if row.dtype:
        if (dtype := _float(row)) != ir.DataType.FLOAT:
            float16.store(model, dtype)
    elif row.bits == 8 and name != contract.DECODER:
        quantize_columns.quantize_columns(model)
    else:
        quantize_blocks.quantize_blocks(model, row.bits, block_size)


def stored_table(source: Source, precision: str) -> Streamed:
    """The embedding table as the bundle stores it."""
    row = PRECISIONS[precision]
    if row.dtype:
        return Weight(EMBED_TOKENS, source, _float(row))
    return quantize_blocks.quantized_rows(EMBED_TOKENS, source)


def _float(precision: Precision) -> ir.DataType:
    return ir.DataType[precision.dtype]
