"""The loop alone, over a model of twenty lines."""

from __future__ import annotations

import numpy as np
from onnx_vlm.runtime.decode import decode, greedy


class Counting:
    """Answers each row's id with the next one; the logits of `vocab` ids."""

    def __init__(self, vocab: int = 10) -> None:
        self.vocab, self.steps = vocab, 0

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.eye(self.vocab, dtype=np.float32)[ids]

    def step(self, ids: np.ndarray) -> np.ndarray:
        self.steps += 1
        return self.logits([(token + 1) % self.vocab for token in ids])


def test_a_row_ends_with_its_stop_token():
    model = Counting()
    assert list(decode(model.logits([5]), model.step, greedy, {8}, 10)) == [[5], [6], [7], [8]]
    assert model.steps == 3, "nothing is computed after the last token"


def test_a_row_is_cut_at_the_limit():
    model = Counting()
    assert list(decode(model.logits([0]), model.step, greedy, {8}, 3)) == [[0], [1], [2]]
    assert model.steps == 2


def test_rows_end_on_their_own():
    model = Counting()
    made = list(decode(model.logits([7, 5]), model.step, greedy, {8, 9}, 10))
    assert made == [[7, 5], [8, 6], [None, 7], [None, 8]]


def test_a_stop_token_may_come_first():
    model = Counting()
    assert list(decode(model.logits([8, 8]), model.step, greedy, {8}, 10)) == [[8, 8]]
    assert model.steps == 0
