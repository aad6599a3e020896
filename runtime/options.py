"""How answers are made: what a caller asks for, settled once with the bundle's defaults and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from ..graphs import InputError
from ..graphs.manifest import Generation


class Options(TypedDict, total=False):
    """Keywords of `generate`, `stream` and `ask`. One that is left out or None is what the checkpoint's
    generation_config.json says, or else as given here.

    Attributes:
        max_new_tokens: where an answer is cut; 256.
        do_sample: draw each token by its probability; if False (the default) take the likeliest.
        temperature: logits are divided by it before a draw; 1.0.
        top_k: draw among this many likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens whose probabilities together reach this; 1.0.
        min_p: draw among tokens at least this share as likely as the likeliest; 0.0.
        repetition_penalty: above 1 makes tokens of prompt and answer less likely; 1.0.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in prompt and answer; 0 for any.
        num_beams: how many answers to follow for the likeliest as a whole; 1.
        num_return_sequences: how many answers to give; those after the first are its `alternatives`; 1.
        length_penalty: with beams, an answer's log-probability is divided by its length to this power; 1.0.
        early_stopping: with beams, stop when `num_beams` answers have ended (True), when the best one on its way is no
            better (False, the default), or when none can become better ("never").
        stop: a text, or several, before which an answer ends; it is part of `token_ids` but not of `text`.
        constrain: "boxes" for an answer that is boxes with labels, as this model writes them, and nothing else: see
            `runtime.grammar`; any text if left out.
        seed: equal seeds draw equal answers, of a prompt alone as of one among several.
    """

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    num_beams: int | None
    num_return_sequences: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    stop: str | Sequence[str] | None
    constrain: Literal["boxes"] | None
    seed: int | None


@dataclass(frozen=True)
class Settings:
    """`Options`, complete and checked."""

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    stop: tuple[str, ...] = ()
    constrain: Literal["boxes"] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        at_least = {"max_new_tokens": 1, "num_beams": 1, "num_return_sequences": 1, "seed": 0}
        at_least |= {"top_k": 0, "no_repeat_ngram_size": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            optional = name in ("max_new_tokens", "seed")
            good = (value is None and optional) or (_is_number(value, int) and value >= least)
            _expect(good, name, value, f"{least} or more" + (", or leave it out" if optional else ""))
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            _expect(_is_number(value, int, float) and value > 0, name, value, "a number above 0")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            _expect(_is_number(value, int, float) and 0 <= value <= 1, name, value, "a number of 0 to 1")
        _expect(_is_number(self.length_penalty, int, float), "length_penalty", self.length_penalty, "a number")
        _expect(isinstance(self.do_sample, bool), "do_sample", self.do_sample, "True or False")
        _expect(
            self.early_stopping in (True, False, "never"),
            "early_stopping",
            self.early_stopping,
            "True, False or 'never'",
        )
        _expect(all(isinstance(one, str) and one for one in self.stop), "stop", self.stop, "texts that are not empty")
        _expect(self.constrain in (None, "boxes"), "constrain", self.constrain, "'boxes', or leave it out")
        if self.num_return_sequences > 1 and not self.do_sample:
            _expect(
                self.num_return_sequences <= self.num_beams, "num_return_sequences", self.num_return_sequences,
                f"at most num_beams ({self.num_beams}), or do_sample=True",
            )  # fmt: skip


def settle(options: Options, bundle: Generation) -> Settings:
    """The settings of a call.

    Raises:
        InputError: for an option that cannot be; TypeError for one that there is not.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"there is no option {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    if "stop" in given:
        _expect(isinstance(given["stop"], (list, tuple)), "stop", given["stop"], "a text or a list of texts")
        given["stop"] = tuple(given["stop"])
    return Settings(**{**dataclasses.asdict(bundle.defaults), **given})


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _expect(good: bool, name: str, value: Any, wanted: str) -> None:
    if not good:
        raise InputError(f"{name} is {value!r}; give {wanted}")
