"""A batch while it is generated: its KV cache, and what is bound to it, on the host or on a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import onnxruntime as ort

from ...graphs import contract
from .device_cache import GRAPH_ID, NO_GRAPH, Buffers, Device, DeviceLogits, failing
from .host_cache import Cache, add_lengths
from .session import Session

#: Logits (batch, vocab): an array, or what stands for one on a device.
Logits: TypeAlias = np.ndarray | DeviceLogits
#: Ids (...) to embeddings (..., hidden).
EmbedTokens: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Run(Protocol):
    """One batch."""

    def run_tokens(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> Logits:
        """Run `inputs_embeds` (batch, sequence, hidden), of which `lengths` (batch,) are valid.

        Returns:
            The logits (batch, vocab) after the last valid one of each row.
        """

    def step(self, source_rows: np.ndarray, ids: np.ndarray) -> Logits:
        """Reorder the batch and append one id to each row.

        Args:
            source_rows: (new batch,), the row that each new row continues. A row may go on several times or not at all.
            ids: (new batch,).

        Returns:
            The logits (new batch, vocab) after the ids.
        """

    def truncate(self, length: int, rows: int, tokens: int) -> Run:
        """A run of the first `length` tokens of the first row, with room for `rows` rows of `tokens` tokens.

        Use only the returned one afterwards.
        """


class HostRun:
    """A batch whose cache is in the memory of the host."""

    def __init__(self, decoder: Session, cache: Cache, embed_tokens: EmbedTokens) -> None:
        self.cache = cache
        self._decoder = decoder
        self._embed_tokens = embed_tokens
        self._binding = decoder.binding()
        self._binding.bind_output(contract.LOGITS)  # the first, so that it is the first of get_outputs()
        cache.bind(self._binding)

    def run_tokens(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        inputs = self.cache.extend(lengths)
        inputs[contract.INPUTS_EMBEDS] = inputs_embeds
        inputs[contract.LOGITS_INDICES] = lengths[:, None] - 1
        for name, value in inputs.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
        self._binding.bind_output(contract.LOGITS)  # new memory: the caller may still hold the logits before
        self._decoder.run_bound(self._binding)
        logits = self._binding.get_outputs()[0].numpy()[:, 0]
        if self.cache.advance():
            self.cache.bind(self._binding)
        return logits

    def step(self, source_rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if self.cache.keep(source_rows):
            self.cache.bind(self._binding)
        return self.run_tokens(self._embed_tokens(ids[:, None]), np.ones(len(ids), np.int64))

    def truncate(self, length: int, rows: int, tokens: int) -> HostRun:
        return HostRun(self._decoder, self.cache.truncate(length, rows, tokens), self._embed_tokens)


class DeviceRun:
    """A batch whose cache and logits are on a device. Logits of a captured step last until the next one.

    Args:
        lengths: (batch,) of int32, how many tokens each row of `buffers` holds.
    """

    def __init__(self, device: Device, buffers: Buffers, lengths: np.ndarray, embed_tokens: EmbedTokens) -> None:
        self.buffers = buffers
        self._device = device
        self._embed_tokens = embed_tokens
        self._lengths = lengths
        self._return_buffers = weakref.finalize(self, device.take_back, buffers)

    def run_tokens(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> DeviceLogits:
        self._extend(lengths)
        inputs = {
            contract.INPUTS_EMBEDS: inputs_embeds,
            contract.SEQUENCE_LENGTHS: self._lengths - 1,
            contract.TOTAL_SEQUENCE_LENGTH: np.array(self._lengths.max(), np.int32),
            contract.LOGITS_INDICES: lengths[:, None] - 1,
        }
        decoder, target = self._device.decoder, self._device.target
        binding = decoder.binding()
        binding.bind_output(contract.LOGITS, target.device, target.device_id)  # the first of get_outputs()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        self.buffers.bind(binding, len(lengths))
        options = None
        if target.captures:
            options = ort.RunOptions()
            options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
        decoder.run_bound(binding, options)
        self.buffers.advance()
        return DeviceLogits(self._device, binding.get_outputs()[0])

    def step(self, source_rows: np.ndarray, ids: np.ndarray) -> DeviceLogits:
        self.buffers.keep(source_rows)
        self._lengths = self._lengths[source_rows]
        inputs_embeds = self._embed_tokens(ids[:, None])
        lengths = np.ones(len(ids), np.int64)
        if not self._device.target.captures:
            return self.run_tokens(inputs_embeds, lengths)
        self._extend(lengths)
        step = self.buffers.step(len(ids))
        with failing():
            step.embeds.update_inplace(inputs_embeds)
            step.sequence_lengths.update_inplace(self._lengths - 1)
        self._device.decoder.run_bound(step.binding, step.options)
        self.buffers.advance()
        return DeviceLogits(self._device, step.logits)

    def truncate(self, length: int, rows: int, tokens: int) -> DeviceRun:
        largest_rows, capacity = self.buffers.size
        buffers = self.buffers
        if rows > largest_rows or tokens > capacity:
            buffers = self._device.buffers(rows, tokens)
            self.buffers.copy_start(length, buffers)
        else:
            self._return_buffers.detach()  # the new run has them now
        return DeviceRun(self._device, buffers, np.array([length], np.int32), self._embed_tokens)

    def _extend(self, lengths: np.ndarray) -> None:
        self._lengths = add_lengths(self._lengths, lengths, self.buffers.capacity)
