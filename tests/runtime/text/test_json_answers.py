"""Answers that are held to JSON, of models that never saw any."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapes
from onnx_vlm.runtime import InputError, load
from onnx_vlm.runtime.inference.host_run import HostRun
from onnx_vlm.runtime.text.json_answers import JsonVocabulary
from tokenizers import Tokenizer, decoders, models

IMAGE = shapes.draw(shapes.scene(shapes.HELD_OUT))
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 9},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["colour", "number", "names"],
    "additionalProperties": False,
}


def fits(text: str) -> bool:
    value = json.loads(text)
    assert list(value) == ["colour", "number", "names"]
    return value["colour"] in ("red", "green") and value["number"] in range(10) and len(value["names"]) <= 2


@pytest.mark.parametrize("name", ["paligemma2", "perception_lm", "kosmos2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "seed": 1, "num_return_sequences": 3}, {"num_beams": 2}, {"repetition_penalty": 1.5}],
    ids=str,
)
def test_answers_are_of_the_schema(bundles: Callable[..., Path], name: str, options: dict[str, Any]):
    vlm = load(bundles(name), threads=1)
    answer = vlm.generate("caption", IMAGE, constrain=SCHEMA, max_new_tokens=90, **options)
    assert all(fits(one.text) for one in (answer, *answer.alternatives))
    assert answer.finish_reason == "stop"
    as_text = vlm.generate("caption", IMAGE, constrain=json.dumps(SCHEMA), max_new_tokens=90, **options)
    assert as_text.token_ids == answer.token_ids


def test_ids_that_must_come_run_together(bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """Where a token sees only what stands before it; with log-probabilities each id needs its logits."""
    vlm, runs = load(bundles("perception_lm"), threads=1, look_ahead=False), []
    run = HostRun._run
    monkeypatch.setattr(HostRun, "_run", lambda *given: runs.append(1) or run(*given))
    answer = vlm.generate("caption", IMAGE, constrain=SCHEMA, max_new_tokens=90)
    together, runs[:] = len(runs), []
    noted = vlm.generate("caption", IMAGE, constrain=SCHEMA, max_new_tokens=90, top_logprobs=1)
    assert noted.token_ids == answer.token_ids
    assert [note.id for note in noted.logprobs] == noted.token_ids
    assert len(runs) == len(noted.token_ids), "the prompt, and a step for each id but the last"
    assert together < 0.75 * len(runs)


def test_an_answer_that_is_cut_is_told(bundle: Path):
    answer = load(bundle, threads=1).generate("caption", IMAGE, constrain="json", max_new_tokens=1)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 1)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nothing"}, "cannot be used"),
        ({"type": "object", "properties": 3}, "cannot be used"),
        ("[1]", "constrain is .*; give 'boxes', 'json' or a JSON schema"),
        ("{", "constrain is .*; give 'boxes', 'json' or a JSON schema"),
        ("[" * 100_000, "constrain is .*; give 'boxes', 'json' or a JSON schema"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_schema_is_refused(bundle: Path, schema: Any, said: str):
    with pytest.raises(InputError, match=said):
        load(bundle, threads=1).generate("caption", IMAGE, constrain=schema)


def test_what_is_missing_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"pip install 'onnx-vlm\[json\]'"):
        load(bundle, threads=1).generate("caption", IMAGE, constrain="json")


def test_a_vocabulary_that_cannot_do_it_is_told():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(InputError, match="no end token"):
        JsonVocabulary(words, 2, [])
    words.decoder = decoders.WordPiece()
    with pytest.raises(InputError, match="does not take this model's tokenizer"):
        JsonVocabulary(words, 2, [1])
