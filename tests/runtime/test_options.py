"""Options of generation: one table, every invalid value named, none that ends in a warning or another error."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import shapes
from helpers import REPOSITORY
from onnx_vlm.graphs.manifest import GenerationDefaults
from onnx_vlm.graphs.sampling import Sampling
from onnx_vlm.runtime import VLM, GenerationError, InputError, Options, load
from onnx_vlm.runtime.options import FIELDS, Settings, resolve

PICTURE = shapes.draw(shapes.scene(shapes.HELD_OUT))
NAN, INFINITY = float("nan"), float("inf")
#: Values that no option takes in any form, tried for each.
NEVER = (NAN, INFINITY, -INFINITY, -1, -1e308, b"a", object(), {"a": 1}, {1}, [None], [[None]], 1j, 10**400, 10**5000)
#: What is invalid, for some though not for others.
INVALID: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (0, True, 2.0, "3"),
    "do_sample": (0, 1, "true"),
    "temperature": (0, True, "hot", 1e-38, 1e-300, 1e308),
    "top_k": (1.0, True),
    "top_p": (1.5, "a"),
    "min_p": (1.5, "a"),
    "repetition_penalty": (0, 1e-320, 1e308),
    "length_penalty": (300, -1000, 1e308, "a"),
    "early_stopping": (1, 0, 1.0, "often"),
    "num_beams": (0, 2.0, np.float32(2)),
    "num_return_sequences": (0, True),
    "stop": ("", [""], 3, ["a", 3]),
    "constrain": ("masks", True),
    "seed": (1.5, True),
    "bad_words_ids": ([[]], [3.5], "5"),
    "suppress_tokens": ([1.5], "5"),
}


def resolved(**options: Any) -> Settings:
    return resolve(options, GenerationDefaults((1,), 256, 4096, Sampling()))


def test_an_option_is_written_once():
    names = [field.name for field in FIELDS]
    assert sorted(get_type_hints(Options)) == sorted(names)
    assert {field.name for field in dataclasses.fields(Sampling)} < set(names)
    for field in FIELDS:
        assert field.help
        assert field.kind.accepts(field.default), field.name
        assert type(None) in get_args(get_type_hints(Options)[field.name]), "one that is None is left out"
    assert resolved() == Settings()


def test_the_page_has_every_option():
    """Its table is this one, row for row."""
    rows = [f"| `{field.name}` | {_shown(field.default)} | {field.help} | {field.kind.allowed} |" for field in FIELDS]
    page = (REPOSITORY / "docs" / "generation-options.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


def _shown(default: Any) -> str:
    return "" if default in (None, ()) else f"`{default}`"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_invalid_value_is_named(field: Any):
    fits = {"length_penalty": (-1,), "constrain": ({"a": 1},)}.get(field.name, ())
    for value in (*NEVER, *INVALID.get(field.name, ())):
        if value in fits:
            continue
        with pytest.raises(InputError, match=rf"{field.name} is .*; give "):
            resolved(**{field.name: value})


def test_numbers_and_arrays_of_numpy_are_taken():
    asked = resolved(
        max_new_tokens=np.int64(3),
        temperature=np.float32(0.5),
        do_sample=np.bool_(True),
        top_k=np.int8(5),
        suppress_tokens=np.array([4, 5]),
        bad_words_ids=[np.array([4, 5])],
        forced_eos_token_id=np.int64(1),
    )
    expected = resolved(
        max_new_tokens=3,
        temperature=0.5,
        do_sample=True,
        top_k=5,
        suppress_tokens=(4, 5),
        bad_words_ids=[[4, 5]],
        forced_eos_token_id=1,
    )
    assert asked == expected
    assert type(asked.max_new_tokens) is int


def test_how_many_answers_there_may_be():
    assert resolved(num_beams=2, num_return_sequences=2, do_sample=True)
    assert resolved(do_sample=True, num_return_sequences=3)
    for options in ({"num_beams": 2, "do_sample": True}, {"num_beams": 2}, {}):
        with pytest.raises(InputError, match="num_return_sequences is 5; give at most num_beams"):
            resolved(num_return_sequences=5, **options)


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "length_penalty": 16},
        {"num_beams": 2, "length_penalty": -16, "early_stopping": "never"},
        {"do_sample": True, "temperature": 1e6, "no_repeat_ngram_size": 1, "seed": 0},
        {"do_sample": True, "temperature": 1e6, "constrain": "boxes", "seed": 0},
        {"do_sample": True, "temperature": 1e-6, "constrain": "boxes", "top_p": 0.5, "min_p": 0.1},
        {"do_sample": True, "temperature": 1e-6, "num_beams": 2},
        {"repetition_penalty": 1e-4},
        {"repetition_penalty": 1e4, "encoder_repetition_penalty": 1e-4, "num_beams": 2},
        {"no_repeat_ngram_size": 10**9, "top_k": 10**9, "do_sample": True, "seed": 0},
        {"suppress_tokens": [10**9], "bad_words_ids": [[5, 10**9]], "forced_eos_token_id": 1},
        {"min_length": 10**9, "min_new_tokens": 10**9},
    ],
    ids=str,
)
def test_the_farthest_values_are_answered_without_a_warning(vlm: VLM, options: dict[str, Any]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = vlm.generate("detect red circle", PICTURE, max_new_tokens=12, **options)
    assert answer.token_ids
    assert answer.score is None or np.isfinite(answer.score)


def test_options_that_leave_no_token_are_an_error_that_says_so(vlm: VLM):
    everything = list(range(vlm.manifest.vocab))
    for more in ({}, {"num_beams": 2}, {"do_sample": True}):
        with pytest.raises(GenerationError, match="leave no token"):
            vlm.generate("caption", PICTURE, suppress_tokens=everything, **more)


def test_an_end_that_the_model_does_not_have_cannot_be_forced(vlm: VLM):
    vocab = vlm.manifest.vocab
    assert vlm.generate("caption", PICTURE, max_new_tokens=2, forced_eos_token_id=vocab - 1).token_ids[-1] == vocab - 1
    for ids in (vocab, [1, vocab], 2**62):
        with pytest.raises(InputError, match=rf"forced_eos_token_id is .*; this model has {vocab} ids"):
            vlm.generate("caption", PICTURE, max_new_tokens=2, forced_eos_token_id=ids)


def test_candidates_may_be_any_series_of_texts(vlm: VLM):
    expected = vlm.score("how many circles", PICTURE, ["1", "2"])
    for candidates in ((text for text in ("1", "2")), np.array(["1", "2"]), ("1", "2"), {"1": 0, "2": 0}):
        assert vlm.score("how many circles", PICTURE, candidates) == expected
    for candidates in (5, None, iter(()), np.array([1, 2])):
        with pytest.raises(InputError, match="candidates are a list of texts"):
            vlm.score("how many circles", PICTURE, candidates)


def test_a_model_without_end_tokens(vlm: VLM):
    """It answers to the limit, and a score has no probability of an end."""
    scored = vlm.score("how many circles", PICTURE, ["1", "2 1"])
    usual = vlm.manifest.generation.eos_token_ids
    object.__setattr__(vlm.manifest.generation, "eos_token_ids", ())
    try:
        for options in ({}, {"num_beams": 2}, {"min_new_tokens": 3}, {"do_sample": True, "num_beams": 2, "seed": 0}):
            answer = vlm.generate("how many circles", PICTURE, max_new_tokens=5, **options)
            assert len(answer.token_ids) == 5
            assert answer.finish_reason == "length"
        endless = vlm.score("how many circles", PICTURE, ["1", "2 1", ""])
    finally:
        object.__setattr__(vlm.manifest.generation, "eos_token_ids", usual)
    for one, other in zip(endless, scored):
        assert one.log_probabilities == pytest.approx(other.log_probabilities[:-1], abs=1e-5)
    assert (endless[2].log_probability, endless[2].log_probabilities) == (0, [])
