"""The attention that transformers' modules call while they are traced: one fused operator for each layer.

It is registered with transformers under `NAME`. Nothing here computes; it only adds nodes to the graph. Vision towers
get `com.microsoft::MultiHeadAttention`, decoders `com.microsoft::GroupQueryAttention` over a KV buffer. The module
`portable_attention` does the same with operators of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ...graphs import CheckpointError
from .patching import DECODER_ROTATION, changed, find, replaced

NAME = "onnx_vlm"


#: Cosines and sines of a kind of layers, (positions, head_dim / 2) each, by its `layer_type`; None for all layers.
Tables = Mapping[str | None, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class CachedAttention:
    """The tensors that a decoder's layers need besides query, key and value; transformers passes them as a keyword.

    `past[layer]` is the layer's key and value buffer, (batch, kv_heads, capacity, head_dim). With `tables`, the
    operator rotates query and key by their position in the buffer. `ahead`, (batch, sequence) of int64, says how many
    tokens after it a token sees besides those before it; None where all see none, or all of a prompt.
    """

    past: list[tuple[torch.Tensor, torch.Tensor]]
    sequence_lengths: torch.Tensor
    total_sequence_length: torch.Tensor
    tables: Tables
    causal: bool
    ahead: torch.Tensor | None = None

    @staticmethod
    def check_heads(head_dim: int, rotates: bool) -> None:
        """Raise a CheckpointError for head sizes that the operator does not take: it rotates 16 numbers at a time."""
        multiple = 16 if rotates else 8
        if head_dim % multiple:
            raise CheckpointError(f"attention heads of {head_dim} are not supported, only multiples of {multiple}")

    @classmethod
    def of_call(cls, *fields: Any, sequence: int) -> CachedAttention:
        """The tensors for a call with `sequence` new tokens in each row; `fields` are the fields in their order."""
        return CachedAttention(*fields)

    @property
    def plain_causal(self) -> bool:
        """Whether a token sees all before it and nothing else, so that no mask need be made."""
        return self.causal and self.ahead is None

    def tables_of(self, layer: torch.nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The rotary tables of a layer, None where the operator does not rotate."""
        kind = getattr(layer, "layer_type", None)
        return self.tables.get(kind if kind in self.tables else None, (None, None))

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
            head_dim = 2 * next(iter(self.tables.values()))[0].shape[-1]
            by_zero = torch.ones(1, 1, head_dim), torch.zeros(1, 1, head_dim)
            with replaced(rotary, forward=lambda *_, **__: by_zero):
                yield

    def mask(self, sequence: int, window: int | None = None) -> torch.Tensor | None:
        """The mask of a layer as the operator takes it, (batch, 1, sequence, total) of float; None if it needs none.

        Args:
            window: how many keys a layer sees, up to the token itself; None for all.
        """
        keys = self.total_sequence_length.item()
        if self.ahead is not None:
            seen = torch.arange(keys) <= (self.positions(sequence) + self.ahead).unsqueeze(-1)
            seen = seen if window is None else seen & self.in_window(keys, window, sequence)
        elif window is not None:
            seen = self.in_window(keys, window, sequence).expand(-1, sequence, -1)
        else:
            return None
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min).unsqueeze(1)

    def positions(self, sequence: int) -> torch.Tensor:
        """The positions of new tokens in their rows, (batch, sequence) of int64; prompts are padded on the right."""
        lengths = self.sequence_lengths.to(torch.int64) + 1
        prefill = self.total_sequence_length == sequence
        return torch.where(prefill, 0, lengths - sequence).unsqueeze(1) + torch.arange(sequence)

    def in_window(self, keys: int, window: int, sequence: int) -> torch.Tensor:
        """Which of the first `keys` keys the window of a token leaves, (batch, sequence or 1, keys) of bool.

        A token sees the last `window` keys up to itself. Where the tokens of a prompt all see each other, they do so in
        every layer, as in transformers' mask for a bidirectional prefix (its block of tokens is joined to the window).
        """
        if self.ahead is not None:
            return torch.arange(keys) > (self.positions(sequence) - window).unsqueeze(-1)
        oldest = (self.sequence_lengths + 1 - window).unsqueeze(1)
        return ((torch.arange(keys) >= oldest) | (self.total_sequence_length == sequence)).unsqueeze(1)


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
    the mask of the model; it takes a window or a mask of its own only where it is not causal, so a mask says all then.
    """
    _, heads, _, head_dim = query.shape
    inputs = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    attributes: dict[str, Any] = {"num_heads": heads, "scale": float(scaling)}
    if cached is None:
        operator = "MultiHeadAttention"
    else:
        operator = "GroupQueryAttention"
        inputs += [*cached.past[module.layer_idx], cached.sequence_lengths, cached.total_sequence_length]
        inputs += [*cached.tables_of(module), None, None if cached.plain_causal else attention_mask]
        attributes |= {"kv_num_heads": key.shape[1], "causal": int(cached.plain_causal)}
        attributes |= {"do_rotary": 1} if cached.tables else {}
        attributes |= {"softcap": float(softcap)} if softcap else {}
    mixed = torch.onnx.ops.symbolic(
        f"com.microsoft::{operator}", inputs, attributes, dtype=query.dtype, shape=inputs[0].shape, version=1
    )
    return mixed.unflatten(2, (heads, head_dim)), None


AttentionInterface.register(NAME, attention)
# The operators make causal masks themselves, so transformers need not make any.
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
