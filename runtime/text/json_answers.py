"""Answers that are JSON of a given schema, by llguidance: which ids may come, and which must."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from ...graphs import InputError
from ..generation.incremental import Incremental
from ..generation.numerics import IMPOSSIBLE, UNLIKELY

if TYPE_CHECKING:
    from llguidance import LLMatcher

#: JSON is written as Python's `json` writes it, so that a model cannot go on with white space for ever.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

SAMPLE = '{"a": [1, "b  c"]}'


class JsonVocabulary:
    """The ids of a tokenizer, as llguidance knows them. It reads the whole vocabulary, which takes seconds if large.

    Args:
        tokenizer: of the bundle.
        size: the number of ids that the model writes.
        end_ids: ids that end an answer.

    Raises:
        InputError: if llguidance is not installed or does not take the tokenizer, or no id ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise InputError(
                "answers in JSON need llguidance; install it: pip install 'onnx-vlm[json]', or leave constrain out"
            ) from None
        if not end_ids:
            raise InputError("this model has no end token, so its answers cannot be JSON alone; leave constrain out")
        self.size = size
        self._matcher = llguidance.LLMatcher
        try:
            self._tokenizer = llguidance.LLTokenizer(_readable(tokenizer.to_str()), size, list(end_ids))
        except Exception as error:  # llguidance raises errors of several kinds
            raise InputError(f"llguidance does not take this model's tokenizer: {error}; leave constrain out") from None
        # Where only one text can follow, llguidance allows the ids that the tokenizer makes of it.
        if self._tokenizer.decode_str(self._tokenizer.tokenize_str(SAMPLE)) != SAMPLE:
            raise InputError("this model's tokenizer changes JSON when it reads it; leave constrain out")

    def matcher(self, schema: str) -> LLMatcher:
        """What follows an answer of a JSON schema, id by id.

        Raises:
            InputError: if the schema is invalid, or too complex.
        """
        try:
            grammar = self._matcher.grammar_from_json_schema(schema, overrides=LAYOUT)
            matcher = self._matcher(self._tokenizer, grammar, log_level=0)
            problem = matcher.get_error()
        except ValueError as error:
            problem = str(error)
        if problem:
            raise InputError(f"the JSON schema {schema:.80} cannot be used: {problem:.300}")
        return matcher


class JsonConstraint:
    """A filter: only ids with which the answer stays JSON of a schema. Where other filters allow none of them, they are
    all equally likely."""

    def __init__(self, vocabulary: JsonVocabulary, schema: str) -> None:
        self._size = vocabulary.size
        self._start = vocabulary.matcher(schema)
        self._matcher = Incremental(self._begin, self._extend)

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        bits = np.frombuffer(self._matcher(prompt, answer).compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._size, bitorder="little").view(bool)
        masked = np.where(allowed, logits, IMPOSSIBLE)
        return masked if masked.max() > IMPOSSIBLE else np.where(allowed, UNLIKELY, IMPOSSIBLE)

    def forced(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The ids that must come next, if only these can."""
        return self._matcher(prompt, answer).compute_ff_tokens()

    def _begin(self, prompt: Sequence[int], answer: Sequence[int]) -> LLMatcher:
        matcher = self._start.deep_copy()
        matcher.consume_tokens([int(token) for token in answer])
        return matcher

    def _extend(self, before: LLMatcher, token: int) -> LLMatcher:
        matcher = before.deep_copy()
        matcher.consume_token(int(token))
        return matcher


def _readable(tokenizer: str) -> str:
    """A tokenizer's JSON as llguidance can read it: one that joins words by their spaces keeps all white space."""
    described: dict[str, Any] = json.loads(tokenizer)
    decoder = described.get("decoder") or {}
    if decoder.get("type") == "Metaspace":
        mark = decoder.get("replacement", "▁")
        space = {"type": "Replace", "pattern": {"String": mark}, "content": " "}
        described["decoder"] = {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}]}
        described["normalizer"] = None
        described["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": mark,
            "prepend_scheme": "never",
            "split": False,
        }
    return json.dumps(described)
