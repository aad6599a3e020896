"""Beam search on toy models, against every possible answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx_vlm.runtime.beam import search

VOCAB, LENGTH, STOP = 4, 4, 0


class Toy:
    """A model whose logits depend on a prompt's number and all ids before; it knows what each row of the batch was."""

    def __init__(self, seed: int, prompts: int) -> None:
        self.table = (
            np.random.default_rng(seed).normal(0, 2, (prompts, *[VOCAB + 1] * LENGTH, VOCAB)).astype(np.float32)
        )
        self.rows: list[tuple[int, list[int]]] = [(prompt, []) for prompt in range(prompts)]

    def logits(self, prompt: int, ids: list[int]) -> np.ndarray:
        return self.table[(prompt, *ids, *[VOCAB] * (LENGTH - len(ids)))]

    def start(self) -> np.ndarray:
        return np.stack([self.logits(*row) for row in self.rows])

    def step(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        self.rows = [(self.rows[row][0], [*self.rows[row][1], int(token)]) for row, token in zip(rows, ids)]
        return self.start()

    def score(self, prompt: int, answer: tuple[int, ...], penalty: float) -> float:
        total = 0.0
        for place, token in enumerate(answer):
            logits = self.logits(prompt, list(answer[:place])).astype(np.float64)
            total += logits[token] - np.log(np.exp(logits).sum())
        return total / len(answer) ** penalty


def every_answer() -> list[tuple[int, ...]]:
    """All that end with the stop id or are cut."""
    return [
        answer
        for length in range(1, LENGTH + 1)
        for answer in itertools.product(range(VOCAB), repeat=length)
        if STOP not in answer[:-1] and (answer[-1] == STOP or length == LENGTH)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_with_enough_beams_the_best_of_all_answers_is_found(seed: int):
    toy = Toy(seed, prompts=2)
    found = search(toy.start(), toy.step, [STOP], LENGTH, VOCAB ** (LENGTH - 1), 0.0)
    best = [max(every_answer(), key=lambda answer: toy.score(prompt, answer, 0.0)) for prompt in range(2)]
    assert [tuple(ids) for ids in found] == best


def test_one_beam_is_no_worse_than_greedy():
    for seed in range(20):
        toy = Toy(seed, prompts=1)
        (found,) = search(toy.start(), toy.step, [STOP], LENGTH, 1, 1.0)
        greedy: list[int] = []
        while len(greedy) < LENGTH and STOP not in greedy:
            greedy.append(int(toy.logits(0, greedy).argmax()))
        assert toy.score(0, tuple(found), 1.0) >= toy.score(0, tuple(greedy), 1.0)


def test_prompts_together_are_answered_as_one_by_one():
    for seed in range(20):
        toy = Toy(seed, prompts=3)
        together = search(toy.start(), toy.step, [STOP], LENGTH, 3, 1.0)
        for prompt in range(3):
            alone = Toy(seed, prompts=3)
            alone.rows = [(prompt, [])]
            assert search(alone.start(), alone.step, [STOP], LENGTH, 3, 1.0) == [together[prompt]]


def test_an_answer_stops_at_any_of_several_ids_and_at_the_limit():
    for seed in range(20):
        toy = Toy(seed, prompts=1)
        (found,) = search(toy.start(), toy.step, [0, 1], 3, 2, 1.0)
        assert len(found) <= 3
        assert not {0, 1} & set(found[:-1])
        assert len(found) == 3 or found[-1] in (0, 1)
