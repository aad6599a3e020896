"""The attention that transformers' modules call while they are traced: one fused operator a layer.

Registered with transformers under `NAME`; nothing here computes, it only puts nodes into the graph. Vision towers get
`com.microsoft::MultiHeadAttention`, decoders `com.microsoft::GroupQueryAttention` over a KV buffer. `standard` is the
same in operators of the ONNX standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "onnx_vlm"


@dataclass(frozen=True)
class CachedAttention:
    """What a decoder's layers need besides query, key and value; handed through transformers as a keyword.

    `past[layer]` is the layer's key and value buffer, (batch, kv_heads, capacity, head_dim). With `cos_cache` and
    `sin_cache`, (positions, head_dim / 2), the operator rotates query and key by their place in the buffer.
    """

    past: list[tuple[torch.Tensor, torch.Tensor]]
    sequence_lengths: torch.Tensor
    total_sequence_length: torch.Tensor
    cos_cache: torch.Tensor | None
    sin_cache: torch.Tensor | None
    causal: bool


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

    `attention_mask` is added to the scores, (batch, 1, sequence, total). A causal operator masks by itself, and ignores
    what mask a model may make.
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
# The operators make causal masks themselves, so transformers is to make none.
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
