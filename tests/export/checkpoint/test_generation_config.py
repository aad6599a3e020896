"""Every key of generation_config.json is done, changes no answer, or is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKPOINT
from onnx_vlm.export import export_model
from onnx_vlm.export.checkpoint.generation_config import (
    DONE,
    HARMLESS,
    LIMITS,
    REFUSED,
    RENAMED,
    end_ids,
    limit,
    sampling,
)
from onnx_vlm.graphs import CheckpointError
from onnx_vlm.graphs.sampling import Sampling
from transformers import GenerationConfig

#: A value of each refused key that changes something.
CHANGING: dict[str, Any] = {
    "encoder_no_repeat_ngram_size": 2,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "forced_bos_token_id": 3,
    "exponential_decay_length_penalty": [5, 1.1],
    "guidance_scale": 1.5,
    "sequence_bias": [[[5], 2.0]],
    "num_beam_groups": 2,
    "penalty_alpha": 0.6,
    "top_h": 0.4,
    "typical_p": 0.9,
    "max_time": 1.0,
    "diversity_penalty": 0.5,
    "assistant_ensemble_weight": 0.5,
    "dola_layers": "low",
    "constraints": ["a"],
    "force_words_ids": [[3]],
    "watermarking_config": {"bias": 2.0},
}


def test_every_field_of_transformers_is_in_one_row():
    """A field that a new version of transformers brings fails here until somebody says what becomes of it."""
    known = [*DONE, *HARMLESS, *REFUSED]
    assert set(vars(GenerationConfig())) - set(known) == set()
    assert len(known) == len(set(known)), "a key has two rows"


def test_defaults_are_those_of_transformers():
    theirs = GenerationConfig()._get_default_generation_params()
    ours = dataclasses.asdict(Sampling())
    for key, default in theirs.items():
        if key in DONE and key not in LIMITS:
            ours_is = ours[RENAMED.get(key, key)]
            assert ours_is == default or (ours_is == () and default is None), key
        elif key in REFUSED:
            assert default is None or default in REFUSED[key], f"transformers' own default of {key} is refused"


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_key_that_is_not_done_is_refused_by_name_unless_it_changes_nothing(key: str):
    with pytest.raises(CheckpointError, match=rf"{key} is .*not supported; remove it or set it to None"):
        sampling({key: CHANGING.get(key, True)})
    for value in (None, *REFUSED[key]):
        assert sampling({key: value}) == Sampling()


def test_keys_that_are_done():
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "suppress_tokens": [5, 6],
        "bad_words_ids": [[3], [4, 5]],
        "forced_eos_token_id": 1,
        "stop_strings": "end",
        "early_stopping": "never",
        "num_beams": 2,
        "top_k": None,
        "num_return_sequences": 2,
        "length_penalty": 1,
        "a_key_of_nobody": 3,
        "use_cache": False,
    }
    assert sampling(settings) == Sampling(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        suppress_tokens=(5, 6),
        bad_words_ids=((3,), (4, 5)),
        forced_eos_token_id=(1,),
        stop=("end",),
        early_stopping="never",
        num_beams=2,
        num_return_sequences=2,
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": "hot"}, "temperature: 'hot' is not float"),
        ({"top_k": 2.5}, "top_k: 2.5 is not int"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"early_stopping": 1}, "early_stopping: 1 is not"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens is \(-1,\)"),
        ({"bad_words_ids": [[]]}, "bad_words_ids is"),
        ({"stop_strings": [""]}, "stop is"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty: nan is not float"),
    ],
)
def test_values_that_are_invalid(settings: dict[str, Any], said: str):
    with pytest.raises(CheckpointError, match=said):
        sampling(settings)


def test_a_temperature_of_0_that_nothing_uses_is_left_out():
    assert sampling({"do_sample": False, "temperature": 0.0}) == sampling({"temperature": 0}) == Sampling()


def test_ends_and_limits():
    assert end_ids({}, 1) == (1,)
    assert end_ids({"eos_token_id": None}, 1) == ()
    assert end_ids({"eos_token_id": [3, 4]}, 1) == (3, 4)
    assert limit({"max_length": 7}, "max_length") == 7
    for settings in ({"eos_token_id": "x"}, {"eos_token_id": [1, -1]}, {"eos_token_id": [True]}):
        with pytest.raises(CheckpointError, match="eos_token_id is"):
            end_ids(settings, 1)
    for value in ("x", 0, 2.0, True):
        with pytest.raises(CheckpointError, match="max_new_tokens is"):
            limit({"max_new_tokens": value}, "max_new_tokens")


def test_an_export_is_refused_before_anything_is_written(tmp_path: Path):
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"typical_p": 0.5}))
    told: list[str] = []
    with pytest.raises(CheckpointError, match=r"typical_p is 0\.5"):
        export_model(checkpoint, tmp_path / "bundle", progress=lambda step, *_: told.append(step))
    assert not told
    assert not (tmp_path / "bundle").exists()
