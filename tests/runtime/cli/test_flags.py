"""Flags: every option of an answer has one, and groups of flags become one object."""

from __future__ import annotations

import inspect
from typing import Annotated

import pytest
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime.cli import app, flags
from onnx_vlm.runtime.options import FIELDS, Options
from onnx_vlm.runtime.providers.load_options import LoadOptions
from typer.testing import CliRunner

VALUES = {
    "max_new_tokens": ("5", 5),
    "do_sample": (None, True),
    "temperature": ("0.5", 0.5),
    "top_k": ("3", 3),
    "top_p": ("0.5", 0.5),
    "min_p": ("0.5", 0.5),
    "repetition_penalty": ("1.5", 1.5),
    "encoder_repetition_penalty": ("1.5", 1.5),
    "no_repeat_ngram_size": ("2", 2),
    "bad_words_ids": ("1,2", ((1, 2),)),
    "suppress_tokens": ("3", (3,)),
    "begin_suppress_tokens": ("3", (3,)),
    "min_length": ("4", 4),
    "min_new_tokens": ("4", 4),
    "forced_eos_token_id": ("1", (1,)),
    "stop": ("a", ("a",)),
    "num_beams": ("3", 3),
    "num_return_sequences": ("2", 2),
    "length_penalty": ("2", 2.0),
    "early_stopping": (None, True),
    "constrain": ("boxes", "boxes"),
    "seed": ("7", 7),
    "top_logprobs": ("2", 2),
}


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The options that `generate` loads and answers with."""
    calls = []

    class Model:
        provider, manifest = "cpu", None

        def generate(self, prompt, image, video, *, bboxes, **options):
            calls.append({name: value for name, value in options.items() if value is not None})
            raise InputError("enough")

    def load(bundle, where, embedding_folder):
        calls.append(where)
        return Model()

    monkeypatch.setattr(flags, "load", load)
    return calls


def test_every_option_has_a_flag(received: list):
    assert VALUES.keys() == Options.__annotations__.keys()
    for name, (text, value) in VALUES.items():
        arguments = [f"--{name.replace('_', '-')}", *([text] if text is not None else [])]
        done = CliRunner().invoke(app, ["generate", "bundle", "prompt", "--no-stream", *arguments])
        assert str(done.exception) == "enough", (name, done.output)
        (field,) = (field for field in FIELDS if field.name == name)
        assert {key: field.check(given) for key, given in received[-1].items()} == {name: value}


def test_values_that_cannot_be_read_are_refused():
    done = CliRunner().invoke(app, ["generate", "bundle", "prompt", "--bad-words-ids", "1,x"])
    assert isinstance(done.exception, InputError)
    assert "--bad-words-ids is ['1,x']; give lists of token ids" in str(done.exception)


def test_early_stopping_may_be_never(received: list):
    command = ["generate", "bundle", "prompt", "--no-stream", "--early-stopping-never"]
    CliRunner().invoke(app, command)
    assert received[-1] == {"early_stopping": "never"}
    done = CliRunner().invoke(app, [*command, "--early-stopping"])
    assert isinstance(done.exception, InputError)


def test_flags_of_loading_become_load_options(received: list):
    command = ["generate", "bundle", "prompt", "--no-stream", "--provider", "cpu", "--threads", "3"]
    switches = ["--allow-fallback", "--no-look-ahead", "--expand-weights", "--share-weights"]
    CliRunner().invoke(app, [*command, "--provider-option", "arena=off", *switches])
    assert received[0] == LoadOptions(
        "cpu", 3, {"arena": "off"}, allow_fallback=True, look_ahead=False, expand_weights=True, share_weights=True
    )


def test_a_group_stands_where_the_parameter_stood():
    def command(first: int, *, group: Annotated[tuple, flags.Group((), lambda: (1,))], last: int = 2) -> None:
        seen.append((first, group, last))

    seen: list[tuple] = []
    expanded = flags.expand(command)
    assert list(inspect.signature(expanded).parameters) == ["first", "last"]
    expanded(first=0, last=3)
    assert seen == [(0, (1,), 3)]
