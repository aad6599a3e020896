"""The body of a request for vectors, and what answers it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ..errors import APIError
from ..protocol import ImagePart, Strict, TextPart

Input = str | Annotated[TextPart | ImagePart, Field(discriminator="type")]


class EmbeddingRequest(Strict):
    """Pages and queries to embed: a text is a query, an image a page.

    `pool_factor` leaves one of so many vectors of a page.
    """

    model: str | None = None
    input: str | Annotated[list[Input], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    pool_factor: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_dimensions(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("dimensions") is not None:
            raise APIError(
                400, "the width of vectors is the model's; leave dimensions out", "dimensions", "unsupported_field"
            )
        return data

    @property
    def inputs(self) -> list[Input]:
        """The inputs, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


def answer(request: EmbeddingRequest, model: str, vectors: Sequence[np.ndarray], tokens: int) -> dict[str, Any]:
    """The response: for each input its vectors (tokens, width), in OpenAI's shape.

    OpenAI's client asks for base64 and makes one flat list of it, so `shape` says how many rows there are.
    """
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(rows, request), "shape": [*rows.shape]}
        for index, rows in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _encoded(rows: np.ndarray, request: EmbeddingRequest) -> str | list[list[float]]:
    if request.encoding_format == "base64":
        return base64.b64encode(np.ascontiguousarray(rows, "<f4").tobytes()).decode()
    return rows.tolist()
