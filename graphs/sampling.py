"""Options of generation that a manifest has defaults for, each written once.

From here come the defaults in the manifest, the keywords in Python, their checks, the command's flags and the docs.
Names and meanings are those of generation_config.json; only its `stop_strings` are called `stop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Kind:
    """The values of an option.

    Attributes:
        allowed: says which they are.
        accepts: whether a value is one of them.
        normalize: makes one value of the several ways to write it, and leaves others as they are.
        flag: the type that the command's flag takes.
        parse: makes the option's value from the flag's; raises ValueError if it cannot.
        metavar: the name of the flag's value in its help; None for that of its type.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    flag: Any
    normalize: Callable[[Any], Any] = _same
    parse: Callable[[Any], Any] = _same
    metavar: str | None = None


def optional(kind: Kind) -> Kind:
    """`kind`, or None."""
    return dataclasses.replace(
        kind, allowed=f"{kind.allowed}, or leave it out", accepts=lambda value: value is None or kind.accepts(value)
    )


def integer(least: int, most: int | None = None) -> Kind:
    """Integers of `least` or more, up to `most`."""
    allowed = f"{least} or more" if most is None else f"an integer from {least} to {most}"
    return Kind(allowed, lambda value: _is_integer(value, least) and (most is None or value <= most), int)


def number(least: float, most: float) -> Kind:
    """Numbers from `least` to `most`."""
    return Kind(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and least <= value <= most,  # false for NaN
        float,
    )


def texts(value: Any) -> Any:
    """A text or several as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def ids(value: Any) -> Any:
    """An id or several as a tuple."""
    return (value,) if type(value) is int else tuple(value) if isinstance(value, list) else value


def show(value: Any) -> str:
    """A value for a message, cut short."""
    try:
        return repr(value)[:80]
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def _is_integer(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 63


def _are_ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_integer(token, 0) for token in value)


def _sequences(value: Any) -> Any:
    return tuple(map(ids, value)) if isinstance(value, (list, tuple)) else value


def _comma_separated(value: list[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, text.split(","))) for text in value)


BOOLEAN = Kind("True or False", lambda value: isinstance(value, bool), bool)
IDS = Kind("token ids of 0 or more", _are_ids, list[int], ids)
SEQUENCES = Kind(
    "lists of token ids, none of them empty",
    lambda value: isinstance(value, tuple) and all(part and _are_ids(part) for part in value),
    list[str],
    _sequences,
    _comma_separated,
    metavar="ID,ID",
)
TEXTS = Kind(
    "a text or a list of texts that are not empty",
    lambda value: isinstance(value, tuple) and all(isinstance(text, str) and text for text in value),
    list[str],
    texts,
)
EARLY_STOPPING = Kind(
    "True, False or 'never'",
    lambda value: isinstance(value, bool) or (isinstance(value, str) and value == "never"),
    bool,
)
PENALTY = number(1e-4, 1e4)
SHARE = number(0, 1)


#: Groups of options, the headings of the command's help.
ANSWER, DRAWS, BEAMS = "Answer", "Random draws", "Beam search"


def option(default: Any, kind: Kind, help: str, group: str = ANSWER) -> Any:
    """A field of a dataclass of options."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, "group": group})


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen where the caller does not say."""

    do_sample: bool = option(False, BOOLEAN, "draw each token by its probability; if not, take the likeliest", DRAWS)
    temperature: float = option(
        1.0, number(1e-6, 1e6), "logits are divided by it before a draw: below 1 likely tokens get likelier", DRAWS
    )
    top_k: int = option(50, integer(0), "draw among this many likeliest tokens; 0 for all", DRAWS)
    top_p: float = option(1.0, SHARE, "draw among the likeliest tokens whose probabilities together reach this", DRAWS)
    min_p: float = option(0.0, SHARE, "draw among tokens at least this share as likely as the likeliest", DRAWS)
    repetition_penalty: float = option(1.0, PENALTY, "above 1 makes tokens of prompt and answer less likely")
    encoder_repetition_penalty: float = option(1.0, PENALTY, "above 1 makes tokens of the prompt more likely")
    no_repeat_ngram_size: int = option(
        0, integer(0), "no sequence of so many tokens occurs twice in prompt and answer; 0 for no such rule"
    )
    bad_words_ids: tuple[tuple[int, ...], ...] = option((), SEQUENCES, "sequences of ids that never occur")
    suppress_tokens: tuple[int, ...] = option((), IDS, "ids that are never chosen")
    begin_suppress_tokens: tuple[int, ...] = option((), IDS, "ids that no answer begins with")
    min_length: int = option(0, integer(0), "no end token before prompt and answer together have so many tokens")
    min_new_tokens: int | None = option(
        None, optional(integer(0)), "no end token before the answer has so many tokens; goes before min_length"
    )
    forced_eos_token_id: tuple[int, ...] = option((), IDS, "an answer that is cut has one of these as its last token")
    stop: tuple[str, ...] = option(
        (), TEXTS, "a text, or several, before which an answer ends; it is part of token_ids but not of text"
    )
    num_beams: int = option(1, integer(1), "how many answers to follow for the likeliest as a whole", BEAMS)
    num_return_sequences: int = option(
        1, integer(1), "how many answers to return; those after the first are its alternatives"
    )
    length_penalty: float = option(
        1.0, number(-16, 16), "with beams, an answer's log-probability is divided by its length to this power", BEAMS
    )
    early_stopping: Literal[True, False, "never"] = option(
        False,
        EARLY_STOPPING,
        "with beams, stop when num_beams answers have ended (True), when the best running one is no better (False), or"
        " when none can become better ('never')",
        BEAMS,
    )

    def problems(self) -> list[str]:
        """A sentence for each value that is invalid, and for values that contradict each other."""
        problems = []
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.metadata["kind"]
            if not kind.accepts(value):
                problems.append(f"{field.name} is {show(value)}; give {kind.allowed}")
        if problems or self.num_return_sequences == 1:
            return problems
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            allowed = f"at most num_beams ({self.num_beams})"
        elif self.num_beams == 1 and not self.do_sample:
            allowed = "at most num_beams (1), or do_sample=True"
        else:
            return []
        return [f"num_return_sequences is {self.num_return_sequences}; give {allowed}"]
