"""Beam search on toy models, against every possible answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx_vlm.runtime.generation.beam import Beams, BeamSettings, search
from onnx_vlm.runtime.generation.steps import drive
from onnx_vlm.runtime.generation.stops import EndTokens
from onnx_vlm.runtime.stream import fold

VOCAB, LENGTH, STOP = 4, 4, 0


class Toy:
    """A model whose logits depend on a prompt's number and all ids before; it knows what each row of the batch was."""

    def __init__(self, seed: int, prompts: int) -> None:
        self.table = (
            np.random.default_rng(seed).normal(0, 2, (prompts, *[VOCAB + 1] * LENGTH, VOCAB)).astype(np.float32)
        )
        self.rows: list[tuple[int, list[int]]] = [(prompt, []) for prompt in range(prompts)]
        self.batches: list[int] = []

    def logits(self, prompt: int, ids: list[int]) -> np.ndarray:
        return self.table[(prompt, *ids, *[VOCAB] * (LENGTH - len(ids)))]

    def start(self) -> np.ndarray:
        return np.stack([self.logits(*row) for row in self.rows])

    def step(self, rows: np.ndarray, ids: np.ndarray, before: dict) -> np.ndarray:
        self.batches.append(len(rows))
        self.rows = [(self.rows[row][0], [*self.rows[row][1], int(token)]) for row, token in zip(rows, ids)]
        return self.start()

    def search(self, width: int, penalty: float = 1.0, stop: tuple[int, ...] = (STOP,), length: int = LENGTH, **more):
        """Scores and ids of the answers to each prompt."""
        settings = BeamSettings(width, max(2, 1 + len(stop)) * width, length, penalty, **more)
        beams = [Beams([], settings, [], EndTokens(stop)) for _ in self.rows]
        return fold(drive(search(self.start(), beams, settings), self.step))

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
    found = toy.search(VOCAB ** (LENGTH - 1), 0.0)
    for prompt, answers in enumerate(found):
        best = sorted(every_answer(), key=lambda answer: -toy.score(prompt, answer, 0.0))
        assert [tuple(ids) for _, ids in answers[:5]] == best[:5]
        assert [score for score, _ in answers[:5]] == pytest.approx(
            [toy.score(prompt, ids, 0.0) for ids in best[:5]], abs=1e-5
        )


@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.0])
def test_a_search_that_never_stops_early_finds_the_best_at_any_length_penalty(penalty: float):
    for seed in range(10):
        toy = Toy(seed, prompts=1)
        (((_, found), *_),) = toy.search(VOCAB ** (LENGTH - 1), penalty, early_stopping="never")
        assert tuple(found) == max(every_answer(), key=lambda answer: toy.score(0, answer, penalty))


def test_early_stopping_takes_the_first_answers_to_end():
    shorter = 0
    for seed in range(20):
        eager, patient = Toy(seed, 1), Toy(seed, 1)
        (first,), (best,) = eager.search(2, early_stopping=True), patient.search(2, early_stopping="never")
        assert best[0][0] >= first[0][0] - 1e-6
        shorter += len(eager.batches) < len(patient.batches)
    assert shorter > 3


def test_prompts_that_are_done_are_dropped_from_the_batch():
    toys = [Toy(seed, prompts=3) for seed in range(10)]
    for toy in toys:
        toy.search(2)
        assert toy.batches == sorted(toy.batches, reverse=True)
    assert any(toy.batches[-1] < toy.batches[0] for toy in toys)


def test_one_beam_is_no_worse_than_greedy():
    for seed in range(20):
        toy = Toy(seed, prompts=1)
        (((_, found),),) = toy.search(1)
        greedy: list[int] = []
        while len(greedy) < LENGTH and STOP not in greedy:
            greedy.append(int(toy.logits(0, greedy).argmax()))
        assert toy.score(0, tuple(found), 1.0) >= toy.score(0, tuple(greedy), 1.0)


def test_prompts_together_are_answered_as_one_by_one():
    for seed in range(20):
        toy = Toy(seed, prompts=3)
        together = toy.search(3)
        for prompt in range(3):
            alone = Toy(seed, prompts=3)
            alone.rows = [(prompt, [])]
            assert alone.search(3) == [together[prompt]]


def test_an_answer_stops_at_any_of_several_ids_and_at_the_limit():
    for seed in range(20):
        toy = Toy(seed, prompts=1)
        (((_, found), *_),) = toy.search(2, stop=(0, 1), length=3)
        assert len(found) <= 3
        assert not {0, 1} & set(found[:-1])
        assert len(found) == 3 or found[-1] in (0, 1)
