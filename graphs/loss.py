"""How far the source model with a bundle's rounded weights is from the source model as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Loss:
    """The distance of the source model with the bundle's rounded weights to the source model, on the proof's answers.

    Attributes:
        logits: the norm of the difference of the logits, divided by the norm of the source's logits; the mean of each
            row is subtracted first.
        equal_tokens, tokens: how many tokens of the source's answers the rounded model also chooses, of how many.
        perplexity, source_perplexity: of the source's answers, for the rounded model and for the source itself.
    """

    logits: float
    equal_tokens: int
    tokens: int
    perplexity: float
    source_perplexity: float

    @property
    def error(self) -> float:
        """The distance that is held to what a precision allows."""
        return self.logits

    def __str__(self) -> str:
        return (
            f"logits {self.logits:.2g} from the source's, {self.equal_tokens} of {self.tokens} tokens equal,"
            f" perplexity of the source's answers {self.perplexity:.4g} (source {self.source_perplexity:.4g})"
        )


@dataclass(frozen=True)
class VectorLoss:
    """The same distance for a bundle of the kind "embedding", on the proof's pages and queries.

    Attributes:
        vectors: the norm of the difference of the vectors, divided by the norm of the source's.
        cosine, least_cosine: of each vector with the source's: the mean, and the least.
        scores: the largest change of the late-interaction score of a query and a page, as a share of the source's.
    """

    kind: Literal["vectors"] = field(default="vectors", init=False)
    vectors: float
    cosine: float
    least_cosine: float
    scores: float

    @property
    def error(self) -> float:
        """The distance that is held to what a precision allows."""
        return self.vectors

    def __str__(self) -> str:
        return (
            f"vectors {self.vectors:.2g} from the source's, cosine {self.cosine:.4f} (least {self.least_cosine:.4f}),"
            f" scores {self.scores:.2g} from the source's"
        )
