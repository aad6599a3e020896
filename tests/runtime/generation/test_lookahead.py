"""Guesses change how many steps an answer takes, and nothing else: over a model that knows a text by heart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_vlm.runtime.generation.decode import Sample, decode, greedy
from onnx_vlm.runtime.generation.lookahead import LONGEST, Earlier, Guesses, drive_ahead
from onnx_vlm.runtime.generation.steps import drive
from onnx_vlm.runtime.generation.stops import EndTokens

VOCAB, END, ROOM = 12, 11, 60
NOTHING = [0] * 0


class Recited:
    """One row of ids; its logits depend on all of them, by a table of pairs and the number of ids."""

    def __init__(self, prompt: Sequence[int], seed: int, period: int) -> None:
        self.held, self.steps, self._period = list(prompt), 0, period
        self._likely = np.random.default_rng(seed).standard_normal((period, VOCAB)).astype(np.float32) * 4

    def logits(self) -> np.ndarray:
        return np.roll(self._likely[len(self.held) % self._period], self.held[-1])[None]

    def step(self, rows: np.ndarray, ids: np.ndarray, before: dict[int, Sequence[int]]) -> np.ndarray:
        return self.run_each([*before.get(0, ()), *ids], kept=1)

    def run_each(self, ids: Sequence[int], kept: int) -> np.ndarray:
        assert len(self.held) + len(ids) <= ROOM, "there is room for no more"
        self.steps += 1
        after = []
        for token in ids:
            self.held.append(int(token))
            after.append(self.logits())
        return np.concatenate(after[-kept:])

    def forget(self, tokens: int) -> None:
        self.held = self.held[: len(self.held) - tokens]


def answer(model: Recited, guesses: Guesses | None, prompt: Sequence[int], **options: Any) -> list[int]:
    choose = Sample(1, 1, seed=3) if options.pop("draws", False) else greedy
    length = ROOM - len(prompt)
    search = decode(model.logits(), [prompt], choose, [], EndTokens({END}), length, **options)
    steps = drive(search, model.step) if guesses is None else drive_ahead(search, model, guesses, length)
    told = []
    while True:
        try:
            told += next(steps)
        except StopIteration as end:
            (chosen,) = end.value
            assert told == chosen, "what is told on the way is the answer"
            return [token.id for token in chosen]


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 2), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
    period=st.integers(1, 5),
    draws=st.booleans(),
    forces=st.booleans(),
    before=st.lists(st.integers(0, VOCAB - 1), max_size=30),
)
def test_answers_are_those_without_guesses(prompt, seed, period, draws, forces, before):
    def forced(prompt: Sequence[int], ids: Sequence[int]) -> list[int]:
        return [3, 1] if forces and len(ids) % 7 == 4 else []

    plain, ahead, earlier = Recited(prompt, seed, period), Recited(prompt, seed, period), Earlier()
    earlier.add(before)
    expected = answer(plain, None, prompt, draws=draws, forced=forced)
    assert answer(ahead, Guesses(prompt, earlier), prompt, draws=draws, forced=forced) == expected
    assert ahead.steps <= plain.steps
    again = Recited(prompt, seed, period)
    assert answer(again, Guesses(prompt, earlier), prompt, draws=draws, forced=forced) == expected


def counts(texts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """For each of the answers, given one after another, its steps and how many ids were guessed."""
    earlier, results = Earlier(), []
    for ids in texts:
        guesses, done, steps, guessed = Guesses(NOTHING, earlier), 0, 0, 0
        while done < len(ids):
            guesses.extend([ids[done]])
            guess = guesses.next(LONGEST)
            right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(guess, ids[done + 1 :])))
            if guess:
                guesses.judge(len(guess), right)
            guesses.extend(guess[:right])
            done, steps, guessed = done + 1 + right, steps + 1, guessed + len(guess)
        earlier.add(ids)
        results.append((steps, guessed))
    return results


def test_what_repeats_takes_few_steps():
    (steps, _), (again, _) = counts([list(range(40)) * 4, [*range(40), *range(50, 90)]])
    assert steps < 80, "160 ids, 40 of them new"
    assert again <= 55, "80 ids, 40 of them new"


def test_guesses_that_are_wrong_are_given_up():
    """Three ids that are always followed by another one."""
    ids = [token for number in range(200) for token in (1, 2, 3, 1000 + number)]
    ((steps, guessed),) = counts([ids])
    assert steps == len(ids)
    assert guessed < 0.07 * len(ids), "a guessed id costs about a third of a step"


def test_guesses_stay_in_the_room_that_is_left():
    prompt = [1, 2, 3, 4] * 12  # nearly all of the room
    model = Recited(prompt, seed=0, period=1)
    model._likely[:] = np.eye(VOCAB)[1]  # each id is followed by the next one
    assert len(answer(model, Guesses(prompt, Earlier()), prompt)) <= ROOM - len(prompt)


@pytest.mark.parametrize("size", [0, 10])
def test_few_of_the_latest_ids_are_remembered(size):
    earlier = Earlier(size)
    earlier.add(list(range(100)))
    assert earlier.find((0, 1, 2)) is None
    assert (earlier.find((96, 97, 98)) is None) == (size == 0)


def test_answers_of_others_are_found_from_the_first_id_on():
    earlier = Earlier()
    first = Recited([5, 6, 7], seed=1, period=3)
    told = answer(first, Guesses([5, 6, 7], earlier), [5, 6, 7])
    guesses = Guesses([9, 5, 6, 7], earlier)
    assert guesses.next(2) == told[:2]
