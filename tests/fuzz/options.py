"""Options of an answer: valid ones, and values that a caller may pass by mistake."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as some
from onnx_vlm.runtime import VLM, load

from .bundles import BASES
from .campaign import Files, Target

IMAGE = np.full((20, 30, 3), 200, np.uint8)
COUNTS = some.integers(0, 5)
TOKENS = some.lists(some.integers(0, 400), max_size=4)  # some of these ids are beyond the vocabulary
SHARES = some.floats(0, 1)
PENALTIES = some.floats(1e-4, 1e4) | some.floats(0.5, 2)
#: Valid values of each option. Some contradict each other.
VALID = {
    "do_sample": some.booleans(),
    "temperature": some.floats(1e-6, 1e6) | some.floats(0.5, 2),
    "top_k": COUNTS | some.integers(0, (1 << 63) - 1),
    "top_p": SHARES,
    "min_p": SHARES,
    "repetition_penalty": PENALTIES,
    "encoder_repetition_penalty": PENALTIES,
    "no_repeat_ngram_size": COUNTS,
    "bad_words_ids": some.lists(some.lists(some.integers(0, 400), min_size=1, max_size=3), max_size=4),
    "suppress_tokens": TOKENS,
    "begin_suppress_tokens": TOKENS,
    "min_length": COUNTS | some.integers(20, 40),
    "min_new_tokens": some.none() | COUNTS,
    "forced_eos_token_id": some.integers(0, 400) | TOKENS,
    "stop": some.text(min_size=1, max_size=3) | some.lists(some.text("abc 12", min_size=1, max_size=2), max_size=3),
    "num_beams": some.integers(1, 5),
    "num_return_sequences": some.integers(1, 3),
    "length_penalty": some.floats(-16, 16),
    "early_stopping": some.booleans() | some.just("never"),
    "max_new_tokens": some.none() | some.integers(1, 8),
    "constrain": some.none() | some.just("boxes") | some.just({"type": "object"}),
    "seed": some.none() | some.integers(0, (1 << 63) - 1),
    "top_logprobs": some.none() | some.integers(0, 20),
}
#: Values that callers may pass by mistake.
SMALL = some.sampled_from([None, True, False, 0, 1, 2, 3, 0.5, 0.9, 1.5, "never", "boxes", "a", [1], [[1, 2], [3]]])
NUMBERS = some.one_of(some.integers(), some.floats(), some.sampled_from([31, 63, 64, 20_000]).map(lambda bits: 2**bits))
VALUES = some.recursive(
    some.one_of(some.none(), some.booleans(), NUMBERS, some.text(max_size=5)),
    lambda parts: some.lists(parts, max_size=3) | some.dictionaries(some.text(max_size=3), parts, max_size=2),
    max_leaves=5,
)
NAMES = some.sampled_from(sorted(VALID))
ANY_OPTIONS = some.dictionaries(NAMES, SMALL | VALUES, max_size=5)
VALID_OPTIONS = some.lists(NAMES, min_size=1, max_size=8, unique=True).flatmap(
    lambda names: some.fixed_dictionaries({name: VALID[name] for name in names})
)
#: How many of the cases have valid options alone, so that combinations run.
VALID_SHARE = 0.8


def make(rng: random.Random) -> Files:
    drawn: list[dict[str, Any]] = []
    strategy = VALID_OPTIONS if rng.random() < VALID_SHARE else ANY_OPTIONS

    @hypothesis.seed(rng.getrandbits(64))
    @hypothesis.settings(
        max_examples=5,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def draw(options: dict[str, Any]) -> None:
        drawn.append(options)

    draw()
    return {f"{rng.choice(BASES).name}/options.py": _source(drawn[-1]).encode(errors="surrogatepass")}


def _source(value: Any) -> str:
    """A value as Python reads it; integers in base 16, as Python limits the length of decimals."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_source(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_source, value)) + "]"
    if type(value) is int:
        return hex(value)
    return f"float({str(value)!r})" if isinstance(value, float) else repr(value)


@lru_cache
def _model(name: str) -> VLM:
    return load(next(base for base in BASES if base.name == name), "cpu", threads=1)


def run(files: Files, folder: Path) -> str:
    """Options are refused, or every answer is one of the model's tokens and no longer than asked for."""
    ((path, source),) = files.items()
    options = eval(source.decode(errors="surrogatepass"))
    options.setdefault("max_new_tokens", 4)
    vlm = _model(path.split("/")[0])
    answer = vlm.generate("what", IMAGE, **options)
    for one in (answer, *answer.alternatives):
        assert 1 <= len(one.token_ids) <= (options["max_new_tokens"] or vlm.manifest.generation.max_positions)
        assert all(0 <= token < vlm.manifest.vocab for token in one.token_ids)
        assert one.finish_reason in ("stop", "length")
    return "answer"


TARGET = Target("options", make, run)
