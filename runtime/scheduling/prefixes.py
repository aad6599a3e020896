"""The KV of what earlier requests began with, so that the next turn of a conversation need not compute it again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inference.token_embeddings import common_length

LEAST = 16  #: tokens; what is shorter is computed sooner than copied


@dataclass(frozen=True)
class Prefix:
    """The embeddings (tokens, hidden) of tokens, and what `Run.save` returned of their row."""

    embeds: np.ndarray
    saved: Any
    nbytes: int


class Prefixes:
    """Beginnings of conversations, the least recently used first, within `memory` bytes."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._keys = 0
        self.nbytes = self.hits = self.misses = self.tokens = 0

    def find(self, embeds: np.ndarray) -> tuple[Any, int]:
        """What was saved of the row that begins like a prompt (tokens, hidden) for longest, and for how many tokens.

        At least one token of the prompt is left to run. ((), 0) if none begins like it.
        """
        lengths = {key: common_length(embeds[:-1], prefix.embeds) for key, prefix in self._kept.items()}
        best = max(lengths, key=lengths.__getitem__, default=None)
        if best is None or lengths[best] < LEAST:
            self.misses += 1
            return (), 0
        self.hits += 1
        self.tokens += lengths[best]
        self._kept.move_to_end(best)
        return self._kept[best].saved, lengths[best]

    def wants(self, tokens: int, nbytes: int) -> bool:
        """Whether `keep` would keep so many tokens of so many bytes."""
        return tokens >= LEAST and nbytes <= self._memory

    def keep(self, prefix: Prefix) -> None:
        """Keep a beginning, in place of those that it goes on from."""
        for key, other in list(self._kept.items()):
            if common_length(prefix.embeds, other.embeds) == len(other.embeds):
                self._drop(key)
        self._keys += 1
        self._kept[self._keys] = prefix
        self.nbytes += prefix.nbytes
        while self.nbytes > self._memory:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: int) -> None:
        self.nbytes -= self._kept.pop(key).nbytes
