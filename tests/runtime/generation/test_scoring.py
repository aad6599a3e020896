"""Scores of given answers: of a toy distribution that can be summed up, and of the trained checkpoint."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import VLM, InputError, Limits, load
from onnx_vlm.runtime.generation.scoring import score
from onnx_vlm.runtime.generation.steps import drive
from onnx_vlm.runtime.stream import fold

PICTURE = shapes.draw(shapes.scene(shapes.HELD_OUT))
VOCAB, ENDS = 6, (0, 3)


class Toy:
    """Logits that depend on all ids before them."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = [()]
        self.batches: list[int] = []

    def of(self, ids: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([1, *ids]).normal(0, 2, VOCAB).astype(np.float32)

    def step(self, rows: np.ndarray, ids: np.ndarray, before: dict) -> np.ndarray:
        self.rows = [(*self.rows[row], int(token)) for row, token in zip(rows, ids)]
        self.batches.append(len(rows))
        return np.stack([self.of(row) for row in self.rows])

    def truth(self, ids: tuple[int, ...]) -> list[float]:
        likely = [np.exp(self.of(ids[:made]).astype(np.float64)) for made in range(len(ids) + 1)]
        chances = [row[token] / row.sum() for row, token in zip(likely, ids)]
        return np.log([*chances, likely[-1][list(ENDS)].sum() / likely[-1].sum()]).tolist()


def test_scores_of_a_toy_distribution():
    """Of any lengths; some are the begin of others, or nothing, or given twice."""
    toy, candidates = Toy(), [(1, 2, 4), (1, 2), (), (5,), (1, 2, 4, 5, 5), (1, 2)]
    found = fold(drive(score(toy.of(())[None], candidates, ENDS), toy.step))
    assert found == [pytest.approx(toy.truth(ids)) for ids in candidates]
    assert toy.batches == [5, 4, 2, 1, 1], "those at their end are dropped"


def test_scores_are_probabilities():
    """All answers of up to two tokens, and what goes on after them, together are certain."""
    toy, going = Toy(), [token for token in range(VOCAB) if token not in ENDS]
    candidates = [ids for length in range(3) for ids in product(going, repeat=length)]
    found = fold(drive(score(toy.of(())[None], candidates, ENDS), toy.step))
    ended = sum(np.exp(sum(one)) for one in found)
    further = sum(np.exp(sum(one[:2])) * (1 - np.exp(one[2])) for one in found if len(one) == 3)
    assert ended + further == pytest.approx(1)


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


def test_the_likeliest_label_is_the_answer(vlm: VLM):
    labels = [str(number) for number in range(5)]
    for kind in ("circle", "square", "triangle"):
        found = vlm.score(f"how many {kind}s", PICTURE, labels)
        assert [one.text for one in found] == labels
        best = max(found, key=lambda one: one.log_probability)
        assert best.text == vlm.generate(f"how many {kind}s", PICTURE).text
        assert 0.9 < sum(np.exp(one.log_probability) for one in found) <= 1 + 1e-6


def test_a_long_answer_is_as_likely_as_its_beam(vlm: VLM):
    answer = vlm.generate("caption", PICTURE, num_beams=2, length_penalty=0.0)
    (scored,) = vlm.score("caption", PICTURE, [answer.text])
    assert scored.token_ids == answer.token_ids[:-1]
    assert scored.log_probability == pytest.approx(answer.score, abs=1e-4)
    assert scored.log_probability == sum(scored.log_probabilities)


def test_candidates_that_cannot_be(bundle: Path, vlm: VLM):
    for prompt, candidates, said in (
        ("how many circles", [], "at least one"),
        ("how many circles", "0", "a list of texts"),
        ("how many circles", [0], "a list of texts"),
        ("how many circles", ["1<eos>"], "end token"),
        (["how many circles"], ["1"], "one prompt"),
        ("how many circles", ["1 " * vlm.manifest.generation.max_positions], "positions"),
    ):
        with pytest.raises(InputError, match=said):
            vlm.score(prompt, PICTURE, candidates)
    with pytest.raises(InputError, match=r"of 2 rows .* the limit max_memory"):
        load(bundle, threads=1, limits=Limits(max_memory=9)).score("how many circles", PICTURE, ["1", "2"])
