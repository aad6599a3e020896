"""Settings turned into what does it: which filters, and greedy decoding, sampling or beam search. Knows ids only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..options import Settings
from .beam import Beams, BeamSettings, search
from .decode import Force, Sample, decode, greedy
from .filters import (
    BadWords,
    Filter,
    ForceEnd,
    MinP,
    NoRepeatNGrams,
    RepetitionPenalty,
    Suppress,
    Temperature,
    TopK,
    TopP,
)
from .logprobs import TokenLogprob
from .steps import Steps
from .stops import AnyOf, EndTokens, Stop


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        ids: its ids.
        score: of beam search: the sum of their log-probabilities by length_penalty.
        logprobs: of each id, if that was asked for.
    """

    ids: list[int]
    score: float | None = None
    logprobs: list[TokenLogprob] | None = None


def answer(
    logits: np.ndarray,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    end_ids: Sequence[int],
    stops: Sequence[Stop] = (),
    constraints: Sequence[Filter] = (),
    forced: Force | None = None,
) -> Steps[list[list[Answer]]]:
    """Answers to prompts, by the strategy that the settings ask for: for each prompt its answers, the best first.

    Args:
        logits: (prompts, vocab), those after the prompts: an array, or what stands for one that is on a device.
        prompts: the ids of each.
        settings: with max_new_tokens set.
        end_ids: ids that end an answer.
        stops: other reasons to end it.
        constraints: other filters.
        forced: tells which ids must come next. It is not asked for beams, nor where log-probabilities are noted.
    """
    chain, stop = filters(settings, end_ids, constraints), AnyOf(EndTokens(end_ids), *stops)
    length = settings.max_new_tokens
    assert length is not None
    if settings.num_beams > 1:
        return (yield from _beams(logits, prompts, settings, length, chain, stop, len(end_ids)))
    returned = settings.num_return_sequences
    choose = Sample(len(prompts) * returned, returned, settings.seed) if settings.do_sample else greedy
    noted = settings.top_logprobs is not None
    history = yield from decode(
        logits, prompts, choose, chain, stop, length, returned, settings.top_logprobs, None if noted else forced
    )
    answers = [Answer([c.id for c in row], logprobs=[c.logprob for c in row] if noted else None) for row in history]
    return [answers[first : first + returned] for first in range(0, len(answers), returned)]


def _beams(
    logits: np.ndarray,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    length: int,
    chain: Sequence[Filter],
    stop: Stop,
    end_ids: int,
) -> Steps[list[list[Answer]]]:
    """Answers by beam search, which may draw as well."""
    beams = BeamSettings(
        width=settings.num_beams,
        candidates=max(2, 1 + end_ids) * settings.num_beams,
        max_new_tokens=length,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
    )
    # Each prompt draws on its own, so that it is answered alike alone and among others.
    started = [
        Beams(ids, beams, chain, stop, np.random.default_rng(settings.seed) if settings.do_sample else None)
        for ids in prompts
    ]
    ended = yield from search(logits, started, beams)
    return [[Answer(ids, score) for score, ids in pairs[: settings.num_return_sequences]] for pairs in ended]


def filters(settings: Settings, end_ids: Sequence[int], constraints: Sequence[Filter]) -> list[Filter]:
    """The filters that settings ask for, in transformers' order; those that would change nothing left out."""
    chain: list[Filter] = []
    if settings.encoder_repetition_penalty != 1:
        chain.append(RepetitionPenalty(1 / settings.encoder_repetition_penalty, with_answer=False))
    if settings.repetition_penalty != 1:
        chain.append(RepetitionPenalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        chain.append(NoRepeatNGrams(settings.no_repeat_ngram_size))
    chain += _forbidden(settings, tuple(end_ids))
    chain += constraints  # the last word: where the others allow none of their ids, they allow them
    return chain + _draws(settings, len(end_ids)) if settings.do_sample else chain


def _forbidden(settings: Settings, end_ids: tuple[int, ...]) -> list[Filter]:
    """Filters that forbid ids, wherever or for a while."""
    chain: list[Filter] = []
    if words := tuple(ids for ids in settings.bad_words_ids if not (len(ids) == 1 and ids[0] in end_ids)):
        chain.append(BadWords(words))
    if settings.min_new_tokens is not None:
        chain.append(Suppress(end_ids, until=settings.min_new_tokens))
    elif settings.min_length:
        chain.append(Suppress(end_ids, until=settings.min_length, with_prompt=True))
    if settings.forced_eos_token_id:
        assert settings.max_new_tokens is not None
        chain.append(ForceEnd(settings.forced_eos_token_id, settings.max_new_tokens))
    if settings.suppress_tokens:
        chain.append(Suppress(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        chain.append(Suppress(settings.begin_suppress_tokens, until=1))
    return chain


def _draws(settings: Settings, end_ids: int) -> list[Filter]:
    """Filters of a draw."""
    chain: list[Filter] = []
    least = 1 if settings.num_beams == 1 else max(2, 1 + end_ids)  # beams need ways to go on besides all ends
    if settings.temperature != 1:
        chain.append(Temperature(settings.temperature))
    if settings.top_k:
        chain.append(TopK(max(settings.top_k, least)))
    if settings.top_p < 1:
        chain.append(TopP(settings.top_p, least))
    if settings.min_p:
        chain.append(MinP(settings.min_p, least))
    return chain
