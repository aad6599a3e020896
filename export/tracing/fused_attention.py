"""The attention that transformers' modules call while they are traced: one fused operator for each layer.

It is registered with transformers under `NAME`. Nothing here computes; it only adds nodes to the graph. Vision towers
get `com.microsoft::MultiHeadAttention`, decoders `com.microsoft::GroupQueryAttention` over a KV buffer. The module
`portable_attention` does the same with operators of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ...graphs import CheckpointError
from .patching import DECODER_ROTATION, changed, find, replaced

NAME = "onnx_vlm"


@dataclass(frozen=True)
class CachedAttention:
    """The tensors that a decoder's layers need besides query, key and value; transformers passes them as a keyword.

    `past[layer]` is the layer's key and value buffer, (batch, kv_heads, capacity, head_dim). With `cos_cache` and
    `sin_cache`, (positions, head_dim / 2), the operator rotates query and key by their position in the buffer.
    """

    past: list[tuple[torch.Tensor, torch.Tensor]]
    sequence_lengths: torch.Tensor
    total_sequence_length: torch.Tensor
    cos_cache: torch.Tensor | None
    sin_cache: torch.Tensor | None
    causal: bool

    @staticmethod
    def check_heads(head_dim: int, rotates: bool) -> None:
        """Raise a CheckpointError for head sizes that the operator does not take: it rotates 16 numbers at a time."""
        multiple = 16 if rotates else 8
        if head_dim % multiple:
            raise CheckpointError(f"attention heads of {head_dim} are not supported, only multiples of {multiple}")

    @classmethod
    def of_call(cls, *tensors: Any, causal: bool, sequence: int) -> CachedAttention:
        """The tensors for a call with `sequence` new tokens in each row; `tensors` are the fields in their order."""
        return CachedAttention(*tensors, causal)

    @contextmanager
    def rotation(self, rotary: torch.nn.Module, modelling: ModuleType) -> Iterator[None]:
        """Leave rotation to the operator: `rotary` and the function of `modelling` that uses it do nothing."""
        if find(DECODER_ROTATION, modelling) is not None:
            with (
                replaced(rotary, forward=lambda *_, **__: (None, None)),
                changed(DECODER_ROTATION, lambda _: lambda query, key, *_, **__: (query, key), modelling),
            ):
                yield
        else:  # cosines of one and sines of zero rotate nothing
            head_dim = 2 * self.cos_cache.shape[-1]
            by_zero = torch.ones(1, 1, head_dim), torch.zeros(1, 1, head_dim)
            with replaced(rotary, forward=lambda *_, **__: by_zero):
                yield

    def window(self, window: int, sequence: int) -> torch.Tensor:
        """The mask of a sliding layer as the operator takes it, (batch, 1, sequence, total) of float."""
        seen = self.in_window(self.total_sequence_length.item(), window, sequence)
        bias = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        return bias.unsqueeze(1).unsqueeze(1).expand(-1, -1, sequence, -1)

    def in_window(self, keys: int, window: int, sequence: int) -> torch.Tensor:
        """Which of the first `keys` keys a sliding layer sees, (batch, keys) of bool.

        A prefill sees all of itself, as transformers' mask for a bidirectional prefix does (its block of tokens is
        joined to the window); a decoded token sees the last `window` keys.
        """
        oldest = (self.sequence_lengths + 1 - window).unsqueeze(1)
        return (torch.arange(keys).unsqueeze(0) >= oldest) | (self.total_sequence_length == sequence)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    cached: CachedAttention | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query, key and value are (batch, heads, sequence, head_dim), the result (batch, sequence, heads, head_dim).

    `attention_mask`, (batch, 1, sequence, total), is added to the scores. A causal operator masks by itself and ignores
    the mask of the model.
    """
    _, heads, _, head_dim = query.shape
    inputs = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    attributes: dict[str, Any] = {"num_heads": heads, "scale": float(scaling)}
    if cached is None:
        operator = "MultiHeadAttention"
    else:
        operator = "GroupQueryAttention"
        inputs += [*cached.past[module.layer_idx], cached.sequence_lengths, cached.total_sequence_length]
        inputs += [cached.cos_cache, cached.sin_cache, None, None if cached.causal else attention_mask]
        attributes |= {"kv_num_heads": key.shape[1], "causal": int(cached.causal)}
        attributes |= {"do_rotary": 1} if cached.cos_cache is not None else {}
        attributes |= {"softcap": float(softcap)} if softcap else {}
    mixed = torch.onnx.ops.symbolic(
        f"com.microsoft::{operator}", inputs, attributes, dtype=query.dtype, shape=inputs[0].shape, version=1
    )
    return mixed.unflatten(2, (heads, head_dim)), None


AttentionInterface.register(NAME, attention)
# The operators make causal masks themselves, so transformers need not make any.
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
