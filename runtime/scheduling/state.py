"""What a scheduler is doing, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """Numbers of one moment; those that count begin with the scheduler.

    Attributes:
        queued: requests that wait for rows.
        running: requests that have rows.
        rows: rows that are in use.
        kv_bytes: bytes of the KV cache.
        kv_used_bytes: those of them that hold tokens of running requests.
        prefix_bytes: bytes of kept beginnings of conversations.
        prefix_hits, prefix_misses: requests that found such a beginning, and those that did not.
        prefix_tokens: tokens that were found and not computed again.
        image_hits, image_misses: tiles whose embeddings were kept, and those that were encoded.
        steps: decoding steps.
        tokens: tokens that were chosen.
    """

    queued: int = 0
    running: int = 0
    rows: int = 0
    kv_bytes: int = 0
    kv_used_bytes: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_tokens: int = 0
    image_hits: int = 0
    image_misses: int = 0
    steps: int = 0
    tokens: int = 0
