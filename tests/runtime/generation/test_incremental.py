"""Values kept up to date id by id are those of all ids, whatever happens to the rows, and no id is read twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx_vlm.runtime.generation.filters import NoRepeatNGrams, RepetitionPenalty
from onnx_vlm.runtime.generation.incremental import Incremental
from onnx_vlm.runtime.grounding.grammar import Constraint, Grammar, Kind

VOCAB = 12
GRAMMAR = Grammar(
    table={
        "open": {Kind.TEXT: "open", Kind.LOCATION: "first"},
        "first": {Kind.LOCATION: "done"},
        "done": {Kind.END: "done", Kind.TEXT: "open"},
    },
    final=frozenset({"done"}),
    continues=True,
    kinds=np.array([Kind.END, *[Kind.TEXT] * 5, *[Kind.LOCATION] * 4, Kind.OTHER, Kind.OTHER], np.int8),
    locations=np.arange(6, 10),
    inside=lambda locations: np.arange(4) >= max(locations, default=0),
)
FILTERS = {
    "penalty": lambda: RepetitionPenalty(1.3),
    "penalty of the prompt": lambda: RepetitionPenalty(0.7, with_answer=False),
    "no id twice": lambda: NoRepeatNGrams(1),
    "no three ids twice": lambda: NoRepeatNGrams(3),
    "grammar": lambda: Constraint(GRAMMAR, 99, [[1]]),
}


def rows_of_a_batch(seed: int) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Prompts and answers of each step: some rows are dropped, repeated and reordered, others grow in place."""
    random = np.random.default_rng(seed)
    prompts = [[1, 2, 11, 20], [1, 2, 11, 20], [3]]  # two are equal; 20 lies beyond the vocabulary
    rows: list[tuple[list[int], list[int]]] = [(prompt, []) for prompt in prompts]
    for _ in range(25):
        yield rows
        if random.random() < 0.5:
            parents = random.integers(0, len(rows), random.integers(1, 6))
            rows = [(rows[parent][0], [*rows[parent][1]]) for parent in parents]
        for _, answer in rows:
            answer.append(int(random.integers(VOCAB)))


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_says_the_same_whatever_it_saw_before(name: str):
    changed = 0
    for seed in range(8):
        logits = np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32)
        used = FILTERS[name]()
        for rows in rows_of_a_batch(seed):
            for prompt, answer in rows:
                expected = FILTERS[name]()(prompt, answer, logits)
                np.testing.assert_array_equal(used(prompt, answer, logits), expected)
                changed += not np.array_equal(expected, logits)
    assert changed > 30


def test_no_id_is_read_twice():
    """Rows fork and grow; only the prompts are read as wholes."""
    begun, extended = [], []

    def begin(prompt: list[int], answer: list[int]) -> tuple[int, ...]:
        begun.append((prompt, list(answer)))
        return (*prompt, *answer)

    def extend(value: tuple[int, ...], token_id: int) -> tuple[int, ...]:
        extended.append(token_id)
        return (*value, token_id)

    value = Incremental(begin, extend)
    steps = 0
    for rows in rows_of_a_batch(0):
        for prompt, answer in rows:
            assert value(prompt, answer) == (*prompt, *answer)
            steps += 1
    assert begun == [([1, 2, 11, 20], []), ([1, 2, 11, 20], []), ([3], [])]
    assert 25 < len(extended) <= steps - 3


def test_an_answer_that_continues_none_begins_anew():
    value = Incremental(lambda prompt, answer: sum(answer), lambda before, token_id: before + token_id)
    prompt = [0]
    for ids in ([], [5], [5, 6], [4, 6], [5, 6, 7], [9], [], [9, 1, 1]):
        assert value(prompt, ids) == sum(ids)


def test_a_grammar_steps_once_for_each_new_id(monkeypatch: pytest.MonkeyPatch):
    stepped = []
    after = Grammar.after
    monkeypatch.setattr(
        Grammar, "after", lambda self, before, token_id: stepped.append(1) or after(self, before, token_id)
    )
    constraint, answer, prompt = Constraint(GRAMMAR, 99, [[1]]), [], [1]
    stepped.clear()
    for token_id in (1, 2, 6, 7, 1, 6, 9, 0):
        constraint.allowed(prompt, answer)
        answer.append(token_id)
    assert len(stepped) == 1 + 7, "the prompt's id, then one for each id that was new"
