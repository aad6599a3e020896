"""Settings turned into what does it: which filters, and greedy decoding, sampling or beam search. Knows ids only."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from ..options import Settings
from .beam import Beams, BeamSettings, search
from .decode import Sample, Step, decode, greedy, on_host
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
from .stops import AnyOf, EndTokens, Stop


@dataclass(frozen=True)
class Answer:
    """Ids of an answer, and with beam search its score: the sum of their log-probabilities by length_penalty."""

    ids: list[int]
    score: float | None = None


#: yields (index, id) of each answer that goes on, step by step; returns the answers to each prompt, the best first
Answering = Generator[list[tuple[int, int]], None, list[list[Answer]]]


def answer(
    logits: np.ndarray,
    step: Step,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    end_ids: Sequence[int],
    stops: Sequence[Stop] = (),
    constraints: Sequence[Filter] = (),
) -> Answering:
    """Answers to prompts, by the strategy that the settings ask for.

    Args:
        logits: (prompts, vocab), those after the prompts: an array, or what stands for one that is on a device.
        step: appends ids to rows, as `decode` and `search` ask for it.
        prompts: the ids of each.
        settings: with max_new_tokens set.
        end_ids: ids that end an answer.
        stops: other reasons to end it.
        constraints: other filters.
    """
    chain, stop = filters(settings, end_ids, constraints), AnyOf(EndTokens(end_ids), *stops)
    returned, length = settings.num_return_sequences, settings.max_new_tokens
    if settings.num_beams == 1:
        if chain or settings.do_sample:
            logits, step = np.asarray(logits), on_host(step)
        choose = Sample(len(prompts) * returned, returned, settings.seed) if settings.do_sample else greedy
        answers: list[list[int]] = [[] for _ in range(len(prompts) * returned)]
        for tokens in decode(logits, step, prompts, choose, chain, stop, length, returned):
            for index, token in tokens:
                answers[index].append(token)
            yield tokens
        return [[Answer(ids) for ids in answers[i : i + returned]] for i in range(0, len(answers), returned)]
    beams = BeamSettings(
        width=settings.num_beams,
        candidates=max(2, 1 + len(end_ids)) * settings.num_beams,
        max_new_tokens=length,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
    )
    logits, step = np.asarray(logits), on_host(step)
    # Each prompt draws on its own, so that it is answered alike alone and among others.
    started = [
        Beams(ids, beams, chain, stop, np.random.default_rng(settings.seed) if settings.do_sample else None)
        for ids in prompts
    ]
    ranked = search(logits, step, started, beams)
    return [[Answer(ids, score) for score, ids in best[:returned]] for best in ranked]


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
