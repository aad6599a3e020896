"""How answers are made: what a caller asks for, completed with the bundle's defaults and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from ..graphs import InputError
from ..graphs.manifest import GenerationDefaults
from ..graphs.sampling import DRAWS, Kind, Sampling, integer, option, optional, show


class Options(TypedDict, total=False):
    """Keywords of `generate`, `stream` and `ask`. One that is left out or None is what the checkpoint's
    generation_config.json says, or else its default; `FIELDS` and docs/generation-options.md tell of each."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    min_length: int | None
    min_new_tokens: int | None
    forced_eos_token_id: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    num_beams: int | None
    num_return_sequences: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    constrain: str | Mapping[str, Any] | None
    seed: int | None
    top_logprobs: int | None


def _schema_text(value: Any) -> Any:
    """A JSON schema as its text; other values as they are."""
    return json.dumps(value) if isinstance(value, Mapping) else value


def _is_constraint(value: Any) -> bool:
    if value in (None, "boxes", "json"):
        return True
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


CONSTRAINT = Kind("'boxes', 'json' or a JSON schema, or leave it out", _is_constraint, str, _schema_text)


@dataclass(frozen=True)
class Settings(Sampling):
    """`Options`, complete and checked.

    Raises:
        InputError: for an invalid value.
    """

    max_new_tokens: int | None = option(
        None, optional(integer(1)), "where an answer is cut; 256 if the checkpoint does not say"
    )
    constrain: str | None = option(
        None,
        CONSTRAINT,
        "'boxes' for an answer of boxes with labels, as this model writes them, and nothing else; 'json' for JSON; or a"
        " JSON schema, as a text or a dictionary",
    )
    seed: int | None = option(
        None, optional(integer(0)), "equal seeds draw equal answers, for a prompt alone as for one among several", DRAWS
    )

    top_logprobs: int | None = option(
        None,
        optional(integer(0, 20)),
        "note the log-probability of each token of the answer, by the model's own logits, and so many likeliest tokens"
        " beside it; not with beams",
    )

    def __post_init__(self) -> None:
        problems = self.problems()
        if self.top_logprobs is not None and self.num_beams > 1:
            problems.append(
                f"top_logprobs goes with no beams, and num_beams is {self.num_beams}; leave one of them out"
            )
        if problems:
            raise InputError(problems[0])

    @property
    def copies(self) -> int:
        """How many rows a prompt's answers take."""
        return max(self.num_beams, self.num_return_sequences)


@dataclass(frozen=True)
class Field:
    """One option: `kind` says which values it takes, `help` what it does, `group` which options it belongs with."""

    name: str
    default: Any
    kind: Kind
    help: str
    group: str

    @property
    def type(self) -> Any:
        """The type of the command's flag; `kind.parse` turns a flag's value into an option's."""
        return self.kind.flag

    def check(self, value: Any) -> Any:
        """A value as `Settings` has it.

        Raises:
            InputError: if it is invalid.
        """
        value = self.kind.normalize(_plain(value))
        if not self.kind.accepts(value):
            raise InputError(f"{self.name} is {show(value)}; give {self.kind.allowed}")
        return value


FIELDS = tuple(Field(field.name, field.default, **field.metadata) for field in dataclasses.fields(Settings))


def resolve(options: Options, bundle: GenerationDefaults) -> Settings:
    """The settings of a call.

    Raises:
        InputError: for an invalid value; TypeError for an unknown option.
    """
    known = {field.name: field for field in FIELDS}
    if unknown := sorted(options.keys() - known.keys()):
        raise TypeError(f"there is no option {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    asked = {name: known[name].check(value) for name, value in options.items() if value is not None}
    return Settings(**{**dataclasses.asdict(bundle.defaults), **asked})


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
