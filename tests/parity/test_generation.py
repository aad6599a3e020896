"""Strategies, filters and stop strings against transformers, on the trained checkpoints and on random logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from helpers import CHECKPOINTS
from judge import Judge
from onnx_vlm.graphs.manifest import GenerationDefaults, Sampling
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.generation.strategy import filters
from onnx_vlm.runtime.inputs import Request
from onnx_vlm.runtime.options import resolve
from source import Answer, Source, ask, open_source
from transformers import GenerationConfig, PreTrainedConfig
from transformers.generation.utils import GenerationMixin

NEW_TOKENS = 32
VOCAB = 97


class Processors(GenerationMixin):
    """transformers' own chain of logits processors for options."""

    config = PreTrainedConfig()

    def chain(self, options: dict[str, Any], prompt: list[int], ids: torch.Tensor) -> Any:
        config = GenerationConfig(**{"top_k": 50, **options})
        config._eos_token_tensor = torch.tensor([1])
        if (new_tokens := options.get("max_new_tokens")) is not None:
            config.max_length = len(prompt) + new_tokens
        return self._get_logits_processor(
            config,
            len(prompt),
            torch.tensor([[token for token in prompt if token < VOCAB]]),
            model_kwargs={"attention_mask": torch.ones_like(ids)},
        )


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 3},
        {"encoder_repetition_penalty": 1.7},
        {"encoder_repetition_penalty": 0.4, "repetition_penalty": 1.2},
        {"bad_words_ids": [[4], [1], [7, 8], [3, 4, 5], list(range(60))]},
        {"bad_words_ids": [[token, 9] for token in range(12)]},
        {"suppress_tokens": [0, 3, 50]},
        {"begin_suppress_tokens": [0, 3, 50]},
        {"min_new_tokens": 12},
        {"min_length": 20},
        {"forced_eos_token_id": 1, "max_new_tokens": 10},
        {"forced_eos_token_id": [1, 5], "max_new_tokens": 10, "suppress_tokens": [5]},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.3},
        {"do_sample": True, "top_k": 5},
        {"do_sample": True, "top_p": 0.6},
        {"do_sample": True, "top_p": 0.01},
        {"do_sample": True, "min_p": 0.2},
        {"do_sample": True, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "num_beams": 3},
        {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_logits_are_filtered_as_by_transformers(options: dict[str, Any]):
    """On random logits and ids, among them an id beyond the vocabulary, as placeholders of pictures may be."""
    bundle = GenerationDefaults((1,), 256, 4096, Sampling())
    random = np.random.default_rng(0)
    chain = filters(resolve(options, bundle), [1], [])
    for _ in range(100):
        logits = random.normal(0, 4, VOCAB).astype(np.float32)
        ids = random.integers(0, 12, random.integers(5, 40)).tolist()
        prompt, answer = [VOCAB + 3, *ids[:5]], ids[5:]
        sequence = torch.tensor([[*prompt, *answer]])
        theirs = Processors().chain(options, prompt, sequence)(sequence, torch.from_numpy(logits)[None])[0].numpy()
        for change in chain:
            logits = change(prompt, answer, logits)
        assert (np.isinf(logits) == np.isinf(theirs)).all()
        assert np.allclose(logits, theirs, rtol=1e-6)


@pytest.fixture(scope="module", params=["paligemma2", "perception_lm", "kosmos2"])
def pair(
    request: pytest.FixtureRequest, bundles: Callable[..., Path], threads: int
) -> tuple[VLM, Source, list[Request]]:
    """A bundle, its source and questions about a picture."""
    scene = shapes.scene(shapes.HELD_OUT + 7)
    kinds = {"kosmos2": shapes.grounded_questions, "perception_lm": shapes.chat_questions}
    asked = kinds.get(request.param, shapes.questions)(scene)
    requests = [ask(question.prompt, [shapes.draw(scene)]) for question in asked]
    return load(bundles(request.param), threads=threads), open_source(CHECKPOINTS / request.param), requests[:4]


def together(vlm: VLM, requests: list[Request], **options: Any) -> list[Any]:
    prompts, images = zip(*((request.prompt, request.images) for request in requests))
    return vlm.generate(prompts, images, max_new_tokens=NEW_TOKENS, **options)


@torch.inference_mode()
def theirs(source: Source, request: Request, **options: Any) -> tuple[list[list[int]], list[float] | None]:
    """Ids of every returned answer, its padding cut off, and the scores."""
    inputs = source.inputs(request)
    if "stop_strings" in options:
        options["tokenizer"] = source.processor.tokenizer
    out = source.generate(
        inputs, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_scores=True, **options
    )
    ends = np.atleast_1d(options.get("eos_token_id", source.model.generation_config.eos_token_id))
    answers = []
    for row in out.sequences[:, inputs["input_ids"].shape[1] :].tolist():
        length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:length])
    return answers, out.sequences_scores.tolist() if "sequences_scores" in out else None


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -0.5, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_beams_and_their_scores(pair: tuple[VLM, Source, list[Request]], options: dict[str, Any], judge: Judge):
    vlm, source, requests = pair
    penalty = options.get("length_penalty", 1.0)
    for request, answer in zip(requests, together(vlm, requests, **options)):
        ids, scores = theirs(source, request, **options)
        ours = [answer, *answer.alternatives]
        judge.beams(source, request, [one.token_ids for one in ours], ids, repr(request.prompt), penalty)
        assert [one.score for one in ours] == pytest.approx(scores, abs=1e-4)


def test_beams_with_several_end_tokens(pair: tuple[VLM, Source, list[Request]], judge: Judge):
    """A token that the answers have within them ends them, besides the usual one."""
    vlm, source, requests = pair
    usual = vlm.manifest.generation.eos_token_ids
    ends = (*usual, together(vlm, requests[:1])[0].token_ids[2])
    object.__setattr__(vlm.manifest.generation, "eos_token_ids", ends)
    try:
        for options in ({"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 1}):
            for request, answer in zip(requests, together(vlm, requests, **options)):
                ids, _ = theirs(source, request, eos_token_id=list(ends), **options)
                ours = [one.token_ids for one in (answer, *answer.alternatives)]
                judge.beams(source, request, ours, ids, repr(request.prompt))
                assert answer.finish_reason == "stop"
    finally:
        object.__setattr__(vlm.manifest.generation, "eos_token_ids", usual)


#: Options that change a greedy answer, given that answer and the length of its prompt.
CHANGES: dict[str, Callable[[list[int], int], dict[str, Any]]] = {
    "repetition_penalty": lambda ids, prompt: {"repetition_penalty": 50.0},
    "encoder_repetition_penalty": lambda ids, prompt: {"encoder_repetition_penalty": 50.0},
    "no_repeat_ngram_size": lambda ids, prompt: {"no_repeat_ngram_size": 1},
    "suppress_tokens": lambda ids, prompt: {"suppress_tokens": [ids[0], ids[len(ids) // 2]]},
    "begin_suppress_tokens": lambda ids, prompt: {"begin_suppress_tokens": [ids[0]]},
    "bad_words_ids": lambda ids, prompt: {"bad_words_ids": [[ids[-1]], ids[:2], [ids[0], ids[-1]]]},
    "min_new_tokens": lambda ids, prompt: {"min_new_tokens": len(ids) + 3},
    "min_length": lambda ids, prompt: {"min_length": prompt + len(ids) + 3},
    "forced_eos_token_id": lambda ids, prompt: {"forced_eos_token_id": ids[-1], "max_new_tokens": 2},
}


@torch.inference_mode()
def greedy(source: Source, request: Request, options: dict[str, Any], start: Sequence[int] = ()) -> Answer:
    """The source's answer under options that begins with the tokens `start`, with logits as the options change them."""
    inputs = source.inputs(request)
    if start:
        options = options | {"prefix_allowed_tokens_fn": source.beginning(inputs, start)}
    out = source.generate(inputs, return_dict_in_generate=True, output_scores=True, do_sample=False, **options)
    scores = torch.cat(out.scores).numpy()
    possible = np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min())
    return Answer(
        request, options["max_new_tokens"], out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), possible
    )


@pytest.mark.parametrize("name", CHANGES)
def test_greedy_with_options(pair: tuple[VLM, Source, list[Request]], name: str, judge: Judge):
    """Each changes some answer, and then as in transformers; so do its placeholders of images, which may be words."""
    vlm, source, requests = pair
    changed = 0
    for request in requests:
        plain = vlm.generate(request.prompt, request.images, max_new_tokens=NEW_TOKENS)
        options = {"max_new_tokens": NEW_TOKENS, **CHANGES[name](plain.token_ids, plain.prompt_tokens)}
        answer = vlm.generate(request.prompt, request.images, **options)
        truth = greedy(source, request, options)
        what = f"{name}, {request.prompt!r}"
        judge.tokens(source, answer.token_ids, truth, what, partial(greedy, source, request, options))
        changed += answer.token_ids != plain.token_ids
    assert changed, f"{name} changes no answer"


@torch.inference_mode()
def test_filters_count_the_ids_of_the_source(pair: tuple[VLM, Source, list[Request]]):
    """Ids of placeholders count as the source model's processor has them."""
    vlm, source, requests = pair
    for request in requests:
        prompt = vlm.pipeline.encode(Request(request.prompt, request.images, [], None)).prompt
        assert prompt.counted.tolist() == source.inputs(request)["input_ids"][0].tolist()


def test_stop_strings(pair: tuple[VLM, Source, list[Request]]):
    """The end of one token and the begin of the next stop the answer where they stop it in transformers."""
    vlm, source, requests = pair
    requests = requests[:1] if source.batches else requests[1:2]  # one whose answer has no tags
    whole = together(vlm, requests)[0]
    middle = len(whole.text) // 2
    for stop in (whole.text[middle - 2 : middle + 2], whole.text[:3], "no such text"):
        (answer,) = together(vlm, requests, stop=stop)
        ids, _ = theirs(source, requests[0], stop_strings=[stop])
        assert [answer.token_ids] == ids
        assert answer.text == whole.text.partition(stop)[0].strip()
        stream = vlm.stream(requests[0].prompt, requests[0].images, max_new_tokens=NEW_TOKENS, stop=stop)
        assert "".join(stream) == answer.text


@pytest.mark.parametrize("pair", ["kosmos2"], indirect=True)
def test_a_tag_as_stop_string(pair: tuple[VLM, Source, list[Request]]):
    """It stops where it does in transformers; the tags themselves are not shown."""
    vlm, source, requests = pair
    for stop in ("<object>", "</object>"):
        (answer,) = together(vlm, requests[:1], stop=stop)
        assert [answer.token_ids] == theirs(source, requests[0], stop_strings=[stop])[0]
        assert answer.finish_reason == "stop"
        assert "<" not in answer.text


def test_scores_are_those_of_the_source(pair: tuple[VLM, Source, list[Request]]):
    """Each candidate and an end token forced upon the source's own generation, by its logits."""
    vlm, source, requests = pair
    end = vlm.manifest.generation.eos_token_ids[0]
    for request in requests[:2]:
        candidates = ["a red circle", "2", vlm.generate(request.prompt, request.images).text]
        for score in vlm.score(request.prompt, request.images, candidates):
            truth = source.log_probabilities(request, [*score.token_ids, end])
            assert score.log_probabilities == pytest.approx(truth, abs=1e-4)
