"""Answers as OpenAI's clients read them: completions, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import to_json as _to_json
from tokenizers import Tokenizer

from ..grounding.types import run_lengths
from ..results import Generation, Score, TokenLogprob

UNLIKELY = -9999.0  #: the least logarithm of a probability that is written; JSON has no infinity


def to_json(value: object) -> bytes:
    """JSON in UTF-8; masks as run lengths, and null for numbers that JSON has not."""
    return _to_json(value, inf_nan_mode="null", fallback=run_lengths)


class TokenTexts:
    """The texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer, ends: Iterable[int]) -> None:
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._before = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._skipped = len(tokenizer.decode(self._before))

    def logprobs(self, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        """Logprobs of an answer or a part of it, without the token that ends it."""
        if tokens is None:
            return None
        content = [
            self._one(token.id, token.logprob) | {"top_logprobs": [self._one(*other) for other in token.top]}
            for token in tokens
            if token.id not in self._ends
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        """A token; its bytes are null where it is but a part of a character."""
        # behind another token: the first of a text may lose the space before it
        text = self._tokenizer.decode([*self._before, token], skip_special_tokens=False)[self._skipped :]
        whole = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, UNLIKELY), "bytes": whole}


def regions(answer: Generation) -> dict[str, Any]:
    """The member `onnx_vlm` of a message."""
    names = ("boxes", "masks", "caption", "entities", "score", "timings")
    return {name: getattr(answer, name) for name in names}


def usage(answers: Sequence[Generation]) -> dict[str, int]:
    """How many tokens a request took."""
    prompt, new = answers[0].prompt_tokens, sum(len(answer.token_ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def flat(answer: Generation) -> list[Generation]:
    """An answer and its alternatives."""
    return [answer, *answer.alternatives]


class Completion:
    """Writes one completion.

    Args:
        id: its name.
        created: seconds since 1970.
        model: the name of the model.
        texts: of the model's tokens.
    """

    def __init__(self, id: str, created: int, model: str, texts: TokenTexts) -> None:
        self._about = {"id": f"chatcmpl-{id}", "created": created, "model": model}
        self._texts = texts

    def whole(self, answer: Generation) -> dict[str, Any]:
        """The completion in one object."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": choice.text,
                    "refusal": None,
                    "onnx_vlm": regions(choice),
                },
                "logprobs": self._texts.logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(flat(answer))
        ]
        return {**self._about, "object": "chat.completion", "choices": choices, "usage": usage(flat(answer))}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """A part of choice `index`."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._texts.logprobs(logprobs),
            "finish_reason": finish_reason,
        }
        return {**self._about, "object": "chat.completion.chunk", "choices": [choice]}

    def last(self, answer: Generation) -> dict[str, Any]:
        """The chunk with the number of tokens."""
        return {**self._about, "object": "chat.completion.chunk", "choices": [], "usage": usage(flat(answer))}


def scores(id: str, created: int, model: str, scored: Sequence[Score]) -> dict[str, Any]:
    """The answer to `POST /v1/score`, in the order of the candidates."""
    return {"id": f"score-{id}", "object": "score", "created": created, "model": model, "scores": scored}
