"""A batch while it is generated whose KV cache is in the memory of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from ...graphs import contract
from .host_cache import Cache
from .run import EmbedTokens
from .session import Session
from .token_embeddings import pad_right

#: With so many tokens at once, of all rows together, `many` is the faster decoder.
MANY = 8


class HostRun:
    """It is what `run.Run` asks for.

    Args:
        many: the decoder for `MANY` tokens or more; it may be the same.
    """

    def __init__(self, decoder: Session, cache: Cache, embed_tokens: EmbedTokens, many: Session) -> None:
        self.cache = cache
        self._decoder, self._many = decoder, many
        self._embed_tokens = embed_tokens
        self._binding = self._bound(decoder)

    def run_tokens(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        inputs, decoder = self.cache.extend(lengths), self._decoder_for(inputs_embeds)
        binding = self._binding if decoder is self._decoder else self._bound(decoder)
        logits = self._run(decoder, binding, inputs, inputs_embeds, lengths[:, None] - 1)
        if self.cache.advance():
            self.cache.bind(self._binding)
        return logits[:, 0]

    def run_each(self, ids: Sequence[int], kept: int) -> np.ndarray:
        """Run `ids` as the next ones of the only row; the logits (kept, vocab) after each of the last `kept`."""
        count = len(ids)
        inputs, indices = self.cache.extend(np.array([count])), np.arange(count - kept, count)[None]
        logits = self._run(self._decoder, self._binding, inputs, self._embed_tokens(np.array([ids])), indices)
        if self.cache.advance():
            self.cache.bind(self._binding)
        return logits[0]

    def forget(self, tokens: int) -> None:
        """Drop the last `tokens` tokens of the only row."""
        self.cache.forget(tokens)

    def step(self, source_rows: np.ndarray, ids: np.ndarray, before: Mapping[int, Sequence[int]] = {}) -> np.ndarray:
        self.keep(source_rows)
        for row, earlier in before.items():
            self.append(row, [self._embed_tokens(np.asarray(earlier))])
        return self.run_tokens(self._embed_tokens(ids[:, None]), np.ones(len(ids), np.int64))

    def keep(self, source_rows: np.ndarray) -> None:
        if self.cache.keep(source_rows) and len(source_rows):
            self.cache.bind(self._binding)

    def append(self, first: int, rows: Sequence[np.ndarray]) -> np.ndarray:
        part = slice(first, first + len(rows))
        lengths = np.array([len(row) for row in rows])
        inputs, padded = self.cache.extend(lengths, part), pad_right(rows)
        decoder = self._decoder_for(padded)
        logits = self._run(decoder, self._bound(decoder, part), inputs, padded, lengths[:, None] - 1)
        self.cache.advance(part)
        return logits[:, 0]

    def begin(self, row: int, prefix: Sequence[np.ndarray] = (), length: int = 0) -> None:
        self.cache.begin(row, prefix, length)

    def save(self, row: int, length: int) -> list[np.ndarray]:
        return self.cache.save(row, length)

    def truncate(self, length: int, rows: int, tokens: int) -> HostRun:
        return HostRun(self._decoder, self.cache.truncate(length, rows, tokens), self._embed_tokens, self._many)

    def _decoder_for(self, inputs_embeds: np.ndarray) -> Session:
        """The decoder that runs so many tokens (batch, sequence, hidden) faster."""
        rows, sequence, _ = inputs_embeds.shape
        return self._many if rows * sequence >= MANY else self._decoder

    def _bound(self, decoder: Session, part: slice | None = None) -> ort.IOBinding:
        """A binding of the rows in use, or of a part of the rows."""
        binding = decoder.binding()
        binding.bind_output(contract.LOGITS)  # the first, so that it is the first of get_outputs()
        if self.cache.batch or part is not None:
            self.cache.bind(binding, part)
        return binding

    def _run(
        self,
        decoder: Session,
        binding: ort.IOBinding,
        inputs: dict[str, np.ndarray],
        inputs_embeds: np.ndarray,
        indices: np.ndarray,
    ) -> np.ndarray:
        """The logits (rows, kept, vocab) at the `indices` (rows, kept) of the new tokens."""
        inputs |= {contract.INPUTS_EMBEDS: inputs_embeds, contract.LOGITS_INDICES: indices}
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        binding.bind_output(contract.LOGITS)  # new memory: the caller may still hold the logits before
        decoder.run_bound(binding)
        return binding.get_outputs()[0].numpy()
