"""Options of an answer with values that a caller may pass by mistake."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as some
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.options import FIELDS

from .campaign import Files, Target

BUNDLE = sorted((Path(__file__).parents[1] / "bundles").iterdir())[-1]
IMAGE = np.full((20, 30, 3), 200, np.uint8)
#: Valid for most options, so that some combinations run.
SMALL = some.sampled_from([None, True, False, 0, 1, 2, 3, 0.5, 0.9, 1.5, "never", "boxes", "a", [1], [[1, 2], [3]]])
NUMBERS = some.one_of(some.integers(), some.floats(), some.sampled_from([31, 63, 64, 20_000]).map(lambda bits: 2**bits))
VALUES = some.recursive(
    some.one_of(some.none(), some.booleans(), NUMBERS, some.text(max_size=5)),
    lambda parts: some.lists(parts, max_size=3) | some.dictionaries(some.text(max_size=3), parts, max_size=2),
    max_leaves=5,
)
OPTIONS = some.dictionaries(
    some.sampled_from([field.name for field in FIELDS]), some.one_of(SMALL, SMALL, VALUES), max_size=5
)


def make(rng: random.Random) -> Files:
    drawn: list[dict[str, Any]] = []

    @hypothesis.seed(rng.getrandbits(64))
    @hypothesis.settings(
        max_examples=5,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(OPTIONS)
    def draw(options: dict[str, Any]) -> None:
        drawn.append(options)

    draw()
    return {"options.py": _source(drawn[-1]).encode(errors="surrogatepass")}


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
def _model() -> VLM:
    return load(BUNDLE, "cpu", threads=1)


def run(files: Files, folder: Path) -> str:
    """Options are refused, or every answer is one of the model's tokens and no longer than asked for."""
    options = eval(files["options.py"].decode(errors="surrogatepass"))
    options.setdefault("max_new_tokens", 4)
    vlm = _model()
    answer = vlm.generate("what", IMAGE, **options)
    for one in (answer, *answer.alternatives):
        assert 1 <= len(one.token_ids) <= (options["max_new_tokens"] or vlm.manifest.generation.max_positions)
        assert all(0 <= token < vlm.manifest.vocab for token in one.token_ids)
        assert one.finish_reason in ("stop", "length")
    return "answer"


TARGET = Target("options", make, run)
