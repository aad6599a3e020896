"""How much a scheduler holds at once, known before it takes a request."""

from __future__ import annotations

import math

from ...graphs import InputError
from ..memory import free_memory
from ..model import VLM
from ..pipeline import Pipeline
from ..text.prompt import EncodedPrompt
from .pace import MOST


def row_tokens(vlm: VLM, rows: int, asked: int | None) -> int:
    """How many tokens each of `rows` rows has room for: as many as `asked`, or as the memory is enough for.

    Raises:
        InputError: if the memory is not enough.
    """
    most = vlm.manifest.generation.max_positions
    allowed = vlm.limits.max_memory
    if allowed is None:
        free = free_memory()
        allowed = None if free is None else free // 2 if asked is None else free
    tokens = most if asked is None else min(asked, most)
    while allowed is not None and (needed := call_bytes(vlm, rows, tokens)) > allowed:
        if asked is not None or tokens == 1:
            raise InputError(
                f"a KV cache of {rows} rows of {tokens} tokens, a prompt's prefill and the logits take {needed} bytes,"
                f" and there is room for {allowed}; give fewer rows (max_rows) or fewer tokens (max_tokens)"
            )
        tokens //= 2
    return tokens


def call_bytes(vlm: VLM, rows: int, tokens: int) -> int:
    """About the bytes that `rows` rows of `tokens` tokens take, with one prompt that runs."""
    # A part of c tokens sees all t: c * t pairs are those of a prompt of sqrt(c * t) tokens.
    at_once = math.isqrt(min(MOST, tokens) * tokens) if vlm.manifest.causal else tokens
    return vlm.pipeline.engine.memory(1, at_once, rows, tokens)


def room(pipeline: Pipeline, prompt: EncodedPrompt, new_tokens: int | None, max_tokens: int) -> int:
    """How many tokens may follow a prompt where both together are at most `max_tokens`.

    Raises:
        InputError: if the prompt is too long, or more is asked for.
    """
    length = len(prompt.ids)
    allowed = pipeline.limits.room(length, new_tokens, pipeline.manifest.generation)
    if length + (new_tokens or 1) > max_tokens:
        raise InputError(
            f"the prompt has {length} tokens, images included, and the answer {new_tokens or 'at least 1'}; a row has"
            f" {max_tokens}: shorten the prompt or ask for fewer tokens"
        )
    return min(allowed, max_tokens - length)


def check_numbers(**numbers: int) -> None:
    """Raise an InputError for a number that is not an integer of 1 or more."""
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{name} is {value!r}; give 1 or more")
