"""A batch while it is generated: its KV cache, and what is bound to it. This one is on a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnxruntime as ort

from ...graphs import contract
from .device_cache import GRAPH_ID, NO_GRAPH, Buffers, Device
from .device_logits import DeviceLogits, failing
from .host_cache import add_lengths
from .token_embeddings import pad_right

#: Logits (batch, vocab): an array, or what stands for one on a device.
Logits: TypeAlias = np.ndarray | DeviceLogits
#: Ids (...) to embeddings (..., hidden).
EmbedTokens: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Run(Protocol):
    """One batch, and rows behind it that are filled on their own before they join it."""

    def run_tokens(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> Logits:
        """Run `inputs_embeds` (batch, sequence, hidden), of which `lengths` (batch,) are valid.

        Returns:
            The logits (batch, vocab) after the last valid one of each row.
        """

    def step(self, source_rows: np.ndarray, ids: np.ndarray, before: Mapping[int, Sequence[int]] = {}) -> Logits:
        """Reorder the batch and append ids to each row.

        Args:
            source_rows: (new batch,), the row that each new row continues. A row may go on several times or not at
                all, and a row behind the batch joins it by this.
            ids: (new batch,).
            before: for some of the new rows, ids that come before that one.

        Returns:
            The logits (new batch, vocab) after the ids.
        """

    def keep(self, source_rows: np.ndarray) -> None:
        """Reorder the batch as `step` does, and run nothing."""

    def append(self, first: int, rows: Sequence[np.ndarray]) -> Logits:
        """Run embeddings (tokens, hidden) as the next tokens of some rows alone, those from the `first` on.

        Returns:
            The logits (rows, vocab) after them.
        """

    def begin(self, row: int, prefix: Any = (), length: int = 0) -> None:
        """Empty a row behind the batch, or fill it with the first `length` tokens of a prefix that `save` returned."""

    def save(self, row: int, length: int) -> Any:
        """A copy of the first `length` tokens of a row, for `begin`."""

    def truncate(self, length: int, rows: int, tokens: int) -> Run:
        """A run of the first `length` tokens of the first row, with room for `rows` rows of `tokens` tokens.

        Use only the returned one afterwards.
        """


class DeviceRun:
    """A batch whose cache and logits are on a device. Logits of a captured step last until the next one.

    Args:
        batch: how many rows are in use.
        length: how many tokens each of them holds.
    """

    def __init__(
        self, device: Device, buffers: Buffers, batch: int, embed_tokens: EmbedTokens, length: int = 0
    ) -> None:
        self.buffers = buffers
        self._device = device
        self._embed_tokens = embed_tokens
        self._batch = batch
        self._lengths = np.zeros(buffers.size[0], np.int32)
        self._lengths[:batch] = length
        self._waiting: set[int] = set()  # rows behind the batch that hold tokens
        self._return_buffers = weakref.finalize(self, device.take_back, buffers)

    def run_tokens(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> DeviceLogits:
        logits = self._run(inputs_embeds, lengths)
        self.buffers.advance(self._waiting)
        return logits

    def step(self, source_rows: np.ndarray, ids: np.ndarray, before: Mapping[int, Sequence[int]] = {}) -> DeviceLogits:
        self.keep(source_rows)
        for row, earlier in before.items():
            self.append(row, [self._embed_tokens(np.asarray(earlier))])
        inputs_embeds = self._embed_tokens(ids[:, None])
        lengths = np.ones(len(ids), np.int64)
        if not self._device.target.captures:
            return self.run_tokens(inputs_embeds, lengths)
        after = self._extend(lengths)
        step = self.buffers.step(len(ids))
        with failing():
            step.embeds.update_inplace(inputs_embeds)
            step.sequence_lengths.update_inplace(after - 1)
        self._device.decoder.run_bound(step.binding, step.options)
        self.buffers.advance(self._waiting)
        return DeviceLogits(self._device, step.logits)

    def keep(self, source_rows: np.ndarray) -> None:
        self._waiting -= {*range(len(source_rows)), *source_rows.tolist()}
        self.buffers.keep(source_rows, sorted(self._waiting))
        self._batch = len(source_rows)
        self._lengths[: self._batch] = self._lengths[source_rows]

    def append(self, first: int, rows: Sequence[np.ndarray]) -> DeviceLogits:
        logits = self._run(pad_right(rows), np.array([len(row) for row in rows]), first)
        self.buffers.advance_rows(range(first, first + len(rows)))
        return logits

    def begin(self, row: int, prefix: Sequence[ort.OrtValue] = (), length: int = 0) -> None:
        if length:
            self.buffers.load(row, prefix)
        self._lengths[row] = length
        self._waiting.add(row)

    def save(self, row: int, length: int) -> list[ort.OrtValue]:
        return self.buffers.save(row)

    def truncate(self, length: int, rows: int, tokens: int) -> DeviceRun:
        largest_rows, capacity = self.buffers.size
        buffers = self.buffers
        if rows > largest_rows or tokens > capacity:
            buffers = self._device.buffers(rows, tokens)
            self.buffers.copy_start(length, buffers)
        else:
            self._return_buffers.detach()  # the new run has them now
        return DeviceRun(self._device, buffers, 1, self._embed_tokens, length)

    def _run(self, inputs_embeds: np.ndarray, lengths: np.ndarray, first: int = 0) -> DeviceLogits:
        after = self._extend(lengths, first)
        inputs = {
            contract.INPUTS_EMBEDS: inputs_embeds,
            contract.SEQUENCE_LENGTHS: after - 1,
            contract.TOTAL_SEQUENCE_LENGTH: np.array(after.max(), np.int32),
            contract.LOGITS_INDICES: lengths[:, None] - 1,
        }
        decoder, target = self._device.decoder, self._device.target
        binding = decoder.binding()
        binding.bind_output(contract.LOGITS, target.device, target.device_id)  # the first of get_outputs()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        self.buffers.bind(binding, len(lengths), first)
        options = None
        if target.captures:
            options = ort.RunOptions()
            options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
        decoder.run_bound(binding, options)
        return DeviceLogits(self._device, binding.get_outputs()[0])

    def _extend(self, lengths: np.ndarray, first: int = 0) -> np.ndarray:
        part = slice(first, first + len(lengths))
        self._lengths[part] = add_lengths(self._lengths[part], lengths, self.buffers.capacity)
        return self._lengths[part].copy()
