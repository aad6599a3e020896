"""The results of calls."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .generation.logprobs import TokenLogprob
from .grounding.types import Box, Entity, Mask


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer without special tokens, up to where a stop string begins.
        token_ids: the new ids, those that ended the answer included.
        finish_reason: "stop" if an end token or a stop string ended the answer, "length" if it was cut.
        prompt_tokens: how many tokens the prompt had, those of images included.
        boxes: boxes named in the answer, in pixels of the first image.
        masks: those that the answer writes codes of, as for `segment` prompts; in pixels of the first image where the
            bundle has a decoder of masks.
        caption: prompt and answer as one text without tags, where a model writes phrases with boxes into its text.
        entities: the phrases of the caption that have boxes, in pixels of the image (in 0..1 without one).
        score: of beam search: the sum of the tokens' log-probabilities by length ** length_penalty.
        logprobs: of each of `token_ids`, if `top_logprobs` asks for them.
        alternatives: further answers to the prompt, if `num_return_sequences` asks for them; by beam search the best
            first.
        timings: seconds of `preprocess`, `vision`, `prefill` and `decode`, and `tokens_per_second` of the decoding; of
            the whole call where several prompts were answered together.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    boxes: list[Box] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    caption: str | None = None
    entities: list[Entity] = field(default_factory=list)
    score: float | None = None
    logprobs: list[TokenLogprob] | None = None
    alternatives: list[Generation] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How likely an answer is.

    Attributes:
        text: the answer.
        log_probability: of all of it and its end: the sum of `log_probabilities`.
        token_ids: its ids, without an end token.
        log_probabilities: of each id after the prompt and the ids before it, and at last of the answer ending there.
    """

    text: str
    log_probability: float
    token_ids: list[int]
    log_probabilities: list[float]


class StageTimer:
    """Seconds between laps; those of laps of the same name are added up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0) + now - self._last
        self._last = now
