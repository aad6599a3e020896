"""A transformers causal language model as the decoder graph: embeddings and KV buffers in, logits and buffers out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import ModelOutput

from ...graphs import CheckpointError, GraphSpec, contract
from .fused_attention import CachedAttention, Tables
from .patching import with_real_tensors

Array = np.ndarray
LENGTH_DEPENDENT = ("dynamic", "longrope")


class Decoder(torch.nn.Module):
    """Prefill and decode by `causal_lm`, whose attention is that of a target.

    Args:
        causal_lm: a transformers `...ForCausalLM`.
        causal: whether a token sees only the tokens before it. If not, the tokens of a prefill see each other, and a
            decoded token sees all before it.
        head_dim: the width of an attention head.
        ahead: whether a causal token also sees a number of tokens after it, those of its image. This number is the last
            of its embedding then.
    """

    rotates = False  #: whether attention rotates queries and keys
    windowed = False  #: whether some layers see the last keys alone

    def __init__(self, causal_lm: torch.nn.Module, *, causal: bool, head_dim: int, ahead: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.causal = causal
        self.head_dim = head_dim
        self.ahead = ahead
        self.cached = CachedAttention

    @property
    def spec(self) -> GraphSpec:
        """The inputs and outputs of the graph."""
        config = self.causal_lm.config
        kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = config.hidden_size + self.ahead
        return contract.decoder(config.num_hidden_layers, kv_heads, self.head_dim, width, config.vocab_size)

    def attend_by(self, cached: type[CachedAttention]) -> None:
        """Choose how the graph attends over its KV cache.

        Raises:
            CheckpointError: if that attention takes no heads of this size.
        """
        cached.check_heads(self.head_dim, self.rotates)
        self.cached = cached

    def constants(self) -> dict[str, Array]:
        """The values of buffers that the model computes and no checkpoint stores, by their names."""
        return {}

    def tables(self) -> Tables:
        """The rotary tables, where attention rotates."""
        return {}

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        sequence_lengths: torch.Tensor,
        total_sequence_length: torch.Tensor,
        logits_indices: torch.Tensor,
        *past: torch.Tensor,
    ) -> torch.Tensor:
        ahead = None
        if self.ahead:
            inputs_embeds, ahead = inputs_embeds[..., :-1], inputs_embeds[..., -1].to(torch.int64)
        elif self.causal and self.windowed:
            ahead = torch.zeros(inputs_embeds.shape[:2], dtype=torch.int64)
        cached = self.cached.of_call(
            list(zip(past[::2], past[1::2])),
            sequence_lengths,
            total_sequence_length,
            self.tables(),
            self.causal,
            ahead,
            sequence=inputs_embeds.shape[1],
        )
        with self._head_given_rows(logits_indices):
            return self.run(inputs_embeds, cached, use_cache=False).logits

    @contextmanager
    def _head_given_rows(self, indices: torch.Tensor) -> Iterator[None]:
        """Compute only the logits of the positions `indices` (batch, kept)."""
        head = self.causal_lm.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (pick_rows(inputs[0], indices),))
        try:
            yield
        finally:
            hook.remove()

    def run(self, inputs_embeds: torch.Tensor, cached: CachedAttention, **options: Any) -> ModelOutput:
        """Call `causal_lm` so that its layers get `cached` and it makes no mask or position of its own."""
        raise NotImplementedError


class RotaryDecoder(Decoder):
    """A decoder with rotary embeddings, which the attention operator applies.

    Args:
        language_model: the decoder's layers, a transformers `...Model`.
        lm_head: the head on top of them.
        first_position: the rotary position of the first token.
        ahead: see `Decoder`.
    """

    rotates = True

    def __init__(
        self,
        language_model: torch.nn.Module,
        lm_head: torch.nn.Module,
        *,
        causal: bool,
        first_position: int,
        ahead: bool = False,
    ) -> None:
        causal_lm = AutoModelForCausalLM.from_config(language_model.config)
        causal_lm.model, causal_lm.lm_head = language_model, lm_head
        head_dim = language_model.layers[0].self_attn.head_dim
        super().__init__(causal_lm, causal=causal, head_dim=head_dim, ahead=ahead)
        config = causal_lm.config
        self.first_position = first_position
        self.window: int | None = getattr(config, "sliding_window", None)
        self.windowed = self.window is not None
        # One type, or one for each kind of layers.
        ropes = causal_lm.model.rotary_emb.rope_type
        self.kinds: list[str | None] = sorted(ropes) if isinstance(ropes, dict) else [None]
        for rope in ropes.values() if isinstance(ropes, dict) else [ropes]:
            if rope in LENGTH_DEPENDENT:
                raise CheckpointError(f"rope_type {rope!r} is not supported: its angles depend on the prompt's length")
        for name in (name for kind in self.kinds for name in _table_names(kind)):
            self.register_buffer(name, torch.empty(config.max_position_embeddings, head_dim // 2))

    def tables(self) -> Tables:
        """The rotary tables, for each kind of layers that has its own."""
        return {kind: tuple(getattr(self, name) for name in _table_names(kind)) for kind in self.kinds}

    def constants(self) -> dict[str, Array]:
        """The rotary tables as the model computes them, row 0 being `first_position`."""
        return with_real_tensors(self._computed_tables)

    @torch.inference_mode()
    def _computed_tables(self) -> dict[str, Array]:
        config = self.causal_lm.config
        positions = torch.arange(config.max_position_embeddings)[None] + self.first_position
        rotary = type(self.causal_lm.model.rotary_emb)(config)
        computed = {}
        for kind in self.kinds:
            tables = rotary(torch.zeros(1), positions, *([] if kind is None else [kind]))
            for name, table in zip(_table_names(kind), tables):
                computed[name] = np.ascontiguousarray(table[0, :, : self.head_dim // 2].numpy())
        return computed

    def run(self, inputs_embeds: torch.Tensor, cached: CachedAttention, **options: Any) -> ModelOutput:
        """Call the model with its rotation and its masks as `cached` makes them; see `Decoder.run`."""
        masks = None
        if self.windowed or self.ahead:
            sequence = inputs_embeds.shape[1]
            masks = {"full_attention": cached.mask(sequence)}
            masks |= {"sliding_attention": cached.mask(sequence, self.window)} if self.windowed else {}
        with cached.rotation(self.causal_lm.model.rotary_emb, sys.modules[type(self.causal_lm).__module__]):
            return self.causal_lm(
                inputs_embeds=inputs_embeds,
                attention_mask=masks,
                position_ids=torch.zeros_like(inputs_embeds[:, :1, 0], dtype=torch.int64),
                cached=cached,
                **options,
            )


def _table_names(kind: str | None) -> tuple[str, str]:
    """The buffers of cosines and sines of a kind of layers."""
    start = f"{kind}_" if kind else ""
    return f"{start}cos_cache", f"{start}sin_cache"


def pick_rows(hidden_states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows `indices` (batch, kept) of `hidden_states` (batch, sequence, hidden).

    One operator that needs no shape: arithmetic on shapes runs on the host, where no CUDA graph can replay it.
    """
    shape = (*indices.shape, hidden_states.shape[-1])
    inputs, dtype = (hidden_states, indices.unsqueeze(-1)), hidden_states.dtype
    return torch.onnx.ops.symbolic("::GatherND", inputs, {"batch_dims": 1}, dtype=dtype, shape=shape, version=13)


def name_cache_outputs(model: ir.Model) -> None:
    """Give every node that writes a cache its outputs and make them outputs of the graph, layer by layer.

    They are not traced: GroupQueryAttention writes into the buffers of its inputs, and of a deep model only the first
    layers are.
    """
    outputs: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            node.resize_outputs(3)
            pairs = list(zip(node.inputs[3:5], node.outputs[1:]))
        elif node.op_type == "ScatterND" and node.inputs[0].is_graph_input():
            pairs = [(node.inputs[0], node.outputs[0])]
        else:
            continue
        for past, value in pairs:
            value.name, value.dtype, value.shape = contract.present_name(past.name), past.dtype, past.shape
            outputs[past] = value
    model.graph.outputs.extend(outputs[past] for past in model.graph.inputs if past in outputs)
