"""The precision of each part of a bundle: chosen, applied to graphs and the embedding table, and what it will take."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from ..graphs import ExportError, contract
from ..graphs.transforms import float16 as precision
from ..graphs.transforms import quantize_blocks as quantize
from ..graphs.transforms import quantize_columns as integer
from ..graphs.transforms.weights import Source, Streamed, Weight

EMBED_TOKENS = "embed_tokens"  #: the table's name among the precisions
FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
BITS = {"int8": 8, "int4": 4}
PRECISIONS = (*FLOATS, *BITS)


def choose(decoder: str, vision: str | None, block_size: int) -> dict[str, str]:
    """The precision of each graph and of the embedding table.

    Raises:
        ExportError: for an unknown precision or block size.
    """
    vision = vision or ("int8" if decoder == "int4" else decoder)
    for given in (decoder, vision):
        if given not in PRECISIONS:
            raise ExportError(f"precision {given!r} is not supported; supported: {', '.join(PRECISIONS)}")
    if block_size not in quantize.BLOCK_SIZES:
        allowed = ", ".join(map(str, quantize.BLOCK_SIZES))
        raise ExportError(f"a block_size of {block_size} is not supported; supported: {allowed}")
    return {
        contract.VISION_ENCODER: vision,
        contract.PROJECTOR: vision,
        contract.DECODER: decoder,
        EMBED_TOKENS: "int8" if decoder in BITS else decoder,
    }


def graph(model: ir.Model, name: str, chosen: str, block_size: int) -> None:
    """Store a graph's weights in a precision. One of 16-bit floats still computes in float32.

    The decoder multiplies a row at a time, for which blocks are best; the others many rows, for which whole rows are.
    """
    if chosen == "int8" and name != contract.DECODER:
        integer.quantize(model)
    elif chosen in BITS:
        quantize.quantize(model, BITS[chosen], block_size)
    elif chosen != "fp32":
        precision.store(model, FLOATS[chosen])


def table(source: Source, chosen: str) -> Streamed:
    """The embedding table as the bundle stores it."""
    if chosen in BITS:
        return quantize.quantized_rows(EMBED_TOKENS, source)
    return Weight(EMBED_TOKENS, source, FLOATS[chosen])


@dataclass(frozen=True)
class Estimate:
    """What an export will take, roughly: seconds on two cores, bytes of memory and of disk."""

    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        disk = f"{self.disk / 1e6:.0f} MB" if self.disk < 1e9 else f"{self.disk / 1e9:.1f} GB"
        return f"about {disk} on disk, {self.memory / 1e9:.1f} GB of memory, {self.seconds:.0f} seconds"


#: Seconds for a billion weights, and for what is in every export, on two cores (fp32 and fp16 taken to be as bf16 is).
WRITING = {"fp32": 16.0, "fp16": 16.0, "bf16": 16.0, "int8": 10.0, "int4": 8.0}
IMPORTS_AND_TRACES, PROVING = 16.0, 40.0
#: Bytes of memory in every export; when it is proven, bytes besides, and for a byte of the largest weight.
MEMORY, RUN, LOADED = 1_200_000_000, 1_000_000_000, 2.5


def estimate(
    parts: dict[str, list[torch.Tensor]], precisions: dict[str, str], block_size: int, prove: bool
) -> Estimate:
    """What it takes to export weights, by the part that they belong to, in these precisions."""
    seconds, disk, largest = IMPORTS_AND_TRACES, 0, 0
    for name, tensors in parts.items():
        chosen = precisions[name]
        for tensor in tensors:
            seconds += tensor.numel() / 1e9 * (WRITING[chosen] + prove * PROVING)
            shared = block_size if name == contract.DECODER else tensor.shape[-1]  # weights of a scale
            bits = BITS[chosen] + 32 / shared if chosen in BITS else FLOATS[chosen].itemsize * 8
            size = int(tensor.numel() * (bits if tensor.ndim == 2 or chosen not in BITS else 32) / 8)
            disk, largest = disk + size, max(largest, size)
    return Estimate(seconds, MEMORY + prove * int(RUN + LOADED * largest), disk)
