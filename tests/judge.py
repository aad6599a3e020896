"""Whether answers are those of the source model: the same tokens, or other ones that float32 cannot tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx_vlm.runtime.inputs import Request
    from source import Answer, Source

#: Largest difference that counts as rounding, relative to the source's largest value of a stage, its largest logit, or
#: its score of a beam. float32 sums in another order differ by some 1e-6; a wrong mask, position or scale by more than
#: 1e-2.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Judge:
    """Compares answers, and notes each near-tie. A run with more than `conftest.MOST_NEAR_TIES` of them fails.

    Attributes:
        note: takes a sentence about a near-tie, which is printed at the end of the run.
    """

    note: Callable[[str], None]

    def tokens(
        self,
        source: Source,
        ours: list[int],
        truth: Answer,
        what: str,
        answer_from: Callable[[Sequence[int]], Answer] | None = None,
    ) -> None:
        """Token for token the same as a greedy answer of the source.

        A difference passes only as a near-tie: the source's own logits of the two tokens are closer than `TOLERANCE` of
        the largest logit. Then the source is made to say our token too, and what follows is compared with that answer.

        Args:
            answer_from: asks the source for an answer that begins so, if it had options.
        """
        while ours != truth.ids:
            shorter = min(len(ours), len(truth.ids))
            index = next((i for i in range(shorter) if ours[i] != truth.ids[i]), shorter)
            assert index < shorter, f"{what}: {ours} and {truth.ids} differ in length"
            logits = truth.logits[index]
            margin = float(logits[truth.ids[index]] - logits[ours[index]]) / float(np.abs(logits).max())
            assert margin < TOLERANCE, f"{what}: {ours} is not {truth.ids}: token {index}, margin {margin:.2e}"
            self.note(f"{what}: token {index}, margin {margin:.2e} of the largest logit")
            start = ours[: index + 1]
            truth = answer_from(start) if answer_from else source.answer_from(truth.request, start, truth.limit)

    def beams(
        self,
        source: Source,
        request: Request,
        ours: Sequence[list[int]],
        theirs: Sequence[list[int]],
        what: str,
        length_penalty: float = 1.0,
    ) -> None:
        """The same beams, the best first.

        Another beam passes only as a near-tie: the source's own score of it is closer to that of the source's beam than
        `TOLERANCE` of the score, whichever is better. A score is, as in transformers, the sum of the log-probabilities
        by the number of tokens to the power of `length_penalty`.
        """
        assert len(ours) == len(theirs), f"{what}: {len(ours)} beams, not {len(theirs)}"
        assert len(set(map(tuple, ours))) == len(ours), f"{what}: a beam is returned twice: {ours}"
        for rank, (one, other) in enumerate(zip(ours, theirs)):
            if one == other:
                continue
            mine, best = (
                float(source.log_probabilities(request, ids).sum()) / len(ids) ** length_penalty for ids in (one, other)
            )
            margin = abs(best - mine) / abs(best)
            assert margin < TOLERANCE, f"{what}: beam {rank}, {one} is not {other}: scores {mine:.7g} and {best:.7g}"
            self.note(f"{what}: beam {rank}, margin {margin:.2e} of the score")
