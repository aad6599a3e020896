"""The loop alone, over a model of twenty lines."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_vlm.runtime.generation.decode import Sample, decode, greedy
from onnx_vlm.runtime.generation.steps import drive, settle
from onnx_vlm.runtime.generation.stops import EndTokens


class Counting:
    """Answers each row's id with the next one; the logits of `vocab` ids. It knows what each row of the batch was."""

    def __init__(self, *first: int, vocab: int = 10) -> None:
        self.vocab, self.batches, self.last = vocab, [], list(first)

    def logits(self) -> np.ndarray:
        return np.eye(self.vocab, dtype=np.float32)[self.last]

    def step(self, rows: np.ndarray, ids: np.ndarray, before: dict) -> np.ndarray:
        assert all(self.last[row] == token for row, token in zip(rows, ids)), "rows are what they were"
        self.batches.append(len(rows))
        self.last = [(token + 1) % self.vocab for token in ids]
        return self.logits()

    def run(self, stop: set[int], max_new_tokens: int, copies: int = 1) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(len(self.last) * copies)]
        prompts = [[0]] * len(self.last)
        search = decode(self.logits(), prompts, greedy, [], EndTokens(stop), max_new_tokens, copies)
        for chosen in drive(search, self.step):
            for number, token, _ in chosen:
                answers[number].append(token)
        return answers


def test_an_answer_ends_with_its_stop_token():
    model = Counting(5)
    assert model.run({8}, 10) == [[5, 6, 7, 8]]
    assert model.batches == [1, 1, 1], "nothing is computed after the last token"


def test_an_answer_is_cut_at_the_limit():
    model = Counting(0)
    assert model.run({8}, 3) == [[0, 1, 2]]
    assert len(model.batches) == 2


def test_answers_that_have_ended_are_dropped_from_the_batch():
    model = Counting(7, 5, 6, 4)
    assert model.run({8, 9}, 10) == [[7, 8], [5, 6, 7, 8], [6, 7, 8], [4, 5, 6, 7, 8]]
    assert model.batches == [4, 3, 2, 1]


def test_a_stop_token_may_come_first():
    model = Counting(8, 8)
    assert model.run({8}, 10) == [[8], [8]]
    assert model.batches == []


def test_a_prompt_may_get_several_answers():
    model = Counting(6, 7)
    assert model.run({8}, 10, copies=2) == [[6, 7, 8], [6, 7, 8], [7, 8], [7, 8]]
    assert model.batches == [4, 2]


def test_few_rows_move_when_some_end():
    for sources, rows in (([0, 2, 4, 5], [0, 4, 2, 5]), ([], []), ([1, 1, 0], [0, 1, 1]), ([7], [7])):
        sources = np.array(sources, np.int64)
        assert sources[settle(sources)].tolist() == rows


def test_filters_see_prompt_and_answer():
    seen = []

    def note(prompt, answer, logits):
        seen.append((list(prompt), list(answer)))
        return logits

    model = Counting(3)
    list(drive(decode(model.logits(), [[1, 2]], greedy, [note], EndTokens({5}), 9), model.step))
    assert seen == [([1, 2], []), ([1, 2], [3]), ([1, 2], [3, 4])]


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.1, 0.0, 0.6, 0.3]) + 1e-30).astype(np.float32)
    draw = Sample(1, 1, seed=0)
    counts = np.bincount([draw(0, logits) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx([0.1, 0, 0.6, 0.3], abs=0.015)  # four standard deviations


def test_equal_seeds_draw_alike_in_any_batch():
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    one, three, other = Sample(1, 1, seed=7), Sample(3, 1, seed=7), Sample(1, 1, seed=8)
    alone = [one(0, logits) for _ in range(20)]
    assert [[three(number, logits) for _ in range(20)] for number in range(3)] == [alone] * 3
    assert [other(0, logits) for _ in range(20)] != alone
    several = Sample(4, 2, seed=7)
    drawn = [[several(number, logits) for _ in range(20)] for number in range(4)]
    assert drawn[0] == drawn[2] == alone
    assert drawn[1] == drawn[3] != alone, "answers to one prompt differ"
