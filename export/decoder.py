"""A transformers causal language model as the decoder graph: embeddings and KV buffers in, logits and buffers out."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AutoModelForCausalLM
from transformers.utils import ModelOutput

from ..graphs import CheckpointError, GraphSpec, contract
from .attention import CachedAttention, replaced

Array = np.ndarray
LENGTH_DEPENDENT = ("dynamic", "longrope")


class Decoder(torch.nn.Module):
    """Prefill and decode by `causal_lm`, whose attention must be `attention.NAME`.

    Args:
        causal_lm: a transformers `...ForCausalLM`.
        causal: whether a token sees only what stands before it. If not, the tokens of a prefill see each other, and a
            decoded token sees all before it.
        head_dim: the width of an attention head.
    """

    HEAD_DIM_MULTIPLE = 8  #: what the attention operator asks of `head_dim`
    cos_cache: torch.Tensor | None
    sin_cache: torch.Tensor | None

    def __init__(self, causal_lm: torch.nn.Module, *, causal: bool, head_dim: int) -> None:
        super().__init__()
        if head_dim % self.HEAD_DIM_MULTIPLE:
            raise CheckpointError(
                f"attention heads of {head_dim} are not supported, only multiples of {self.HEAD_DIM_MULTIPLE}"
            )
        self.causal_lm = causal_lm
        self.causal = causal
        self.head_dim = head_dim
        self.register_buffer("cos_cache", None)
        self.register_buffer("sin_cache", None)

    @property
    def spec(self) -> GraphSpec:
        """What the graph takes and gives."""
        config = self.causal_lm.config
        kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return contract.decoder(
            config.num_hidden_layers, kv_heads, self.head_dim, config.hidden_size, config.vocab_size
        )

    def constants(self) -> dict[str, Array]:
        """Values of the buffers that are computed and in no checkpoint."""
        return {}

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        sequence_lengths: torch.Tensor,
        total_sequence_length: torch.Tensor,
        logits_indices: torch.Tensor,
        *past: torch.Tensor,
    ) -> torch.Tensor:
        cached = CachedAttention(
            list(zip(past[::2], past[1::2])),
            sequence_lengths, total_sequence_length, self.cos_cache, self.sin_cache, self.causal,
        )  # fmt: skip
        with replaced(sys.modules[type(self.causal_lm).__module__], slice_logits_to_keep=pick_rows):
            return self.run(inputs_embeds, cached, logits_to_keep=logits_indices, use_cache=False).logits

    def run(self, inputs_embeds: torch.Tensor, cached: CachedAttention, **options: Any) -> ModelOutput:
        """Call `causal_lm` so that its layers get `cached` and it makes no mask or position of its own."""
        raise NotImplementedError


class RotaryDecoder(Decoder):
    """A decoder with rotary embeddings, which the attention operator applies.

    Args:
        language_model: the decoder's layers, a transformers `...Model`.
        lm_head: the head on top of them.
        first_position: the rotary position of the first token.
    """

    HEAD_DIM_MULTIPLE = 16  #: more when it rotates

    def __init__(
        self, language_model: torch.nn.Module, lm_head: torch.nn.Module, *, causal: bool, first_position: int
    ) -> None:
        causal_lm = AutoModelForCausalLM.from_config(language_model.config)
        causal_lm.model, causal_lm.lm_head = language_model, lm_head
        super().__init__(causal_lm, causal=causal, head_dim=language_model.layers[0].self_attn.head_dim)
        config = causal_lm.config
        self.first_position = first_position
        self.window: int | None = getattr(config, "sliding_window", None)
        if causal and self.window is not None:
            raise CheckpointError(f"a sliding window ({self.window}) with causal attention is not supported")
        rope = causal_lm.model.rotary_emb.rope_type
        if rope in LENGTH_DEPENDENT:
            raise CheckpointError(f"rope_type {rope!r} is not supported: its angles depend on the prompt's length")
        rotary = torch.empty(config.max_position_embeddings, self.head_dim // 2)
        self.cos_cache, self.sin_cache = rotary, rotary.clone()

    def constants(self) -> dict[str, Array]:
        """The rotary tables as the model computes them, row 0 being `first_position`."""
        config = self.causal_lm.config
        with unset_fake_temporarily(), torch.inference_mode():
            positions = torch.arange(config.max_position_embeddings)[None] + self.first_position
            tables = type(self.causal_lm.model.rotary_emb)(config)(torch.zeros(1), positions)
            return {
                name: np.ascontiguousarray(table[0, :, : self.head_dim // 2].numpy())
                for name, table in zip(("cos_cache", "sin_cache"), tables)
            }

    def run(self, inputs_embeds: torch.Tensor, cached: CachedAttention, **options: Any) -> ModelOutput:
        masks = None
        if self.window is not None:
            bias = window_bias(inputs_embeds, cached.sequence_lengths, cached.total_sequence_length, self.window)
            masks = {"full_attention": None, "sliding_attention": bias}
        module = sys.modules[type(self.causal_lm).__module__]
        with replaced(module, apply_rotary_pos_emb=lambda query, key, *_, **__: (query, key)):
            return self.causal_lm(
                inputs_embeds=inputs_embeds,
                attention_mask=masks,
                position_ids=torch.zeros_like(inputs_embeds[:, :1, 0], dtype=torch.int64),
                cached=cached,
                **options,
            )


def pick_rows(hidden_states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows `indices` (batch, kept) of `hidden_states` (batch, sequence, hidden).

    One operator that needs no shape: arithmetic on shapes runs on the host, where no CUDA graph can replay it.
    """
    shape = (*indices.shape, hidden_states.shape[-1])
    inputs, dtype = (hidden_states, indices.unsqueeze(-1)), hidden_states.dtype
    return torch.onnx.ops.symbolic("::GatherND", inputs, {"batch_dims": 1}, dtype=dtype, shape=shape, version=13)


def window_bias(
    inputs_embeds: torch.Tensor, sequence_lengths: torch.Tensor, total: torch.Tensor, window: int
) -> torch.Tensor:
    """What is added to the scores of a sliding layer, (batch, 1, sequence, total): 0 or the least float.

    A prefill sees all of itself, as transformers' mask for a bidirectional prefix does (its block of tokens is joined
    to the window); a decoded token sees the last `window` keys.
    """
    sequence = inputs_embeds.shape[1]
    keys = torch.arange(total.item()).unsqueeze(0)
    oldest = (sequence_lengths + 1 - window).unsqueeze(1)
    seen = (keys >= oldest) | (total == sequence)
    bias = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    return bias.unsqueeze(1).unsqueeze(1).expand(-1, -1, sequence, -1)


def name_cache_outputs(model: ir.Model) -> None:
    """Give every GroupQueryAttention node its cache outputs and make them outputs of the graph, layer by layer.

    They are not traced: the operator writes into the buffers of its inputs.
    """
    outputs: dict[int, list[ir.Value]] = {}
    for node in model.graph:
        if node.op_type != "GroupQueryAttention":
            continue
        past_key, past_value = node.inputs[3:5]
        layer = int(re.findall(r"\d+", past_key.name)[0])
        node.resize_outputs(3)
        for value, past, part in zip(node.outputs[1:], (past_key, past_value), ("key", "value")):
            value.name, value.dtype, value.shape = contract.present_name(layer, part), past.dtype, past.shape
        outputs[layer] = list(node.outputs[1:])
    for layer in sorted(outputs):
        model.graph.outputs.extend(outputs[layer])
