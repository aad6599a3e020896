"""The attention of the portable target: products, a softmax and a KV buffer, in operators of the ONNX standard alone.

`Attention`, `RMSNormalization` and `RotaryEmbedding` of opset 23 are left out on purpose: TensorRT 10.0 parses none of
them, and 10.15 only an `Attention` without soft-capping and past.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from .fused_attention import CachedAttention
from .patching import replaced

NAME = "onnx_vlm_standard"
OPSET = 20  #: the latest that every TensorRT 10 parses


@dataclass(frozen=True)
class WrittenCache(CachedAttention):
    """A cache whose buffers are copied with the new keys and values written into the copy.

    Attributes:
        indices: row, head and position of each new key in a buffer, (batch, kv_heads, sequence, 3) of int64.
        seen: the keys of a buffer that a token attends to, (batch, 1, sequence, capacity) of bool.
    """

    indices: torch.Tensor = field(kw_only=True)
    seen: torch.Tensor = field(kw_only=True)

    @staticmethod
    def check_heads(head_dim: int, rotates: bool) -> None:
        """Take heads of any size: no operator here asks for one."""

    @classmethod
    def of_call(cls, *fields: Any, sequence: int) -> WrittenCache:
        """The tensors for a call with `sequence` new tokens in each row; rows of a prompt are padded on the right."""
        cached = CachedAttention(*fields)
        batch, kv_heads, capacity, _ = cached.past[0][0].shape
        lengths = cached.sequence_lengths.to(torch.int64) + 1
        positions = cached.positions(sequence)
        shape = (batch, kv_heads, sequence)
        indices = torch.stack(
            [
                torch.arange(batch)[:, None, None].expand(shape),
                torch.arange(kv_heads)[None, :, None].expand(shape),
                positions.unsqueeze(1).expand(shape),
            ],
            -1,
        )
        # Padding may see any keys, but it must see some, so that its softmax stays finite.
        last = positions if cached.causal else (lengths - 1).unsqueeze(1).expand(batch, sequence)
        last = last if cached.ahead is None else last + cached.ahead
        seen = torch.arange(capacity) <= last[:, None, :, None]
        return cls(**vars(cached), indices=indices, seen=seen)

    @contextmanager
    def rotation(self, rotary: torch.nn.Module, modelling: ModuleType) -> Iterator[None]:
        """Make the model rotate by rows of the rotary tables."""
        positions = self.positions(self.indices.shape[2])
        tables = {}
        for kind, pair in self.tables.items():
            rows = (torch.nn.functional.embedding(positions, table) for table in pair)
            tables[kind] = tuple(torch.cat([row, row], -1) for row in rows)

        def rows_of(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
            return tables[layer_type]

        with replaced(rotary, forward=rows_of):
            yield

    def mask(self, sequence: int, window: int | None = None) -> torch.Tensor:
        """The keys that a layer sees, (batch, 1, sequence, capacity) of bool."""
        if window is None:
            return self.seen
        return self.seen & self.in_window(self.seen.shape[-1], window, sequence).unsqueeze(1)

    def write(self, past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """A copy of a buffer with the new tokens' keys or values (batch, kv_heads, sequence, head_dim) in it."""
        return torch.onnx.ops.symbolic(
            "ScatterND", [past, self.indices, new], dtype=past.dtype, shape=past.shape, version=OPSET
        )


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    cached: WrittenCache | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query, key and value are (batch, heads, sequence, head_dim), the result (batch, sequence, heads, head_dim).

    `attention_mask` marks the keys that are seen, (batch, 1, sequence, capacity) of bool; if None, `cached.seen` does.
    """
    batch, heads, sequence, head_dim = query.shape
    if cached is not None:
        past_key, past_value = cached.past[module.layer_idx]
        key, value = cached.write(past_key, key), cached.write(past_value, value)
    kv_heads = key.shape[1]
    # The query heads of a group become rows of one matmul with their key head, so that no key is repeated.
    rows = (query * scaling).reshape(batch, kv_heads, heads // kv_heads * sequence, head_dim)
    scores = torch.matmul(rows, key.transpose(2, 3)).reshape(batch, heads, sequence, -1)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if cached is not None:
        seen = cached.seen if attention_mask is None or cached.plain_causal else attention_mask
        scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1).reshape(batch, kv_heads, heads // kv_heads * sequence, -1)
    mixed = torch.matmul(weights, value).reshape(batch, heads, sequence, head_dim)
    return mixed.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
