"""What the path of vectors does."""

from __future__ import annotations

import asyncio
import threading
from itertools import groupby

import numpy as np
from anyio import to_thread
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ...model import VLM
from ...retrieval import pooled
from ..conversation import read_url, url_of
from ..endpoints import Service
from ..errors import APIError, ClientGoneError, json_response
from ..guard import Record
from ..models import Model
from ..protocol import TextPart
from .protocol import EmbeddingRequest, answer


class EmbeddingsEndpoint:
    """`POST /v1/embeddings`, as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["state"]["record"]
        async with self._service.bodies.read(Request(scope, receive)) as parts:
            asked, model, inputs = await to_thread.run_sync(self._read, parts, record)
            vectors = await self._follow(model, inputs, receive)
            tokens = sum(map(len, vectors))
            if asked.pool_factor is not None:
                vectors = [
                    rows if isinstance(given, str) else pooled(rows, asked.pool_factor)
                    for given, rows in zip(inputs, vectors)
                ]
            self._service.metrics.embedded(tokens, model.name)
            record.about["vectors"] = tokens
            response = await to_thread.run_sync(lambda: json_response(answer(asked, model.name, vectors, tokens)))
            await response(scope, receive, send)

    def _read(self, parts: list[bytes], record: Record) -> tuple[EmbeddingRequest, Model, list[str | bytes]]:
        """The request in a body, its model, and its queries (texts) and pages (bytes)."""
        asked = EmbeddingRequest.model_validate_json(b"".join(parts))
        parts.clear()
        model = self._service.models.get(asked.model)
        record.about["model"] = model.name
        if model.turns is None:
            raise APIError(
                400,
                f"{model.name} answers questions; ask it at /v1/chat/completions",
                "model",
                "model_makes_no_vectors",
            )
        inputs: list[str | bytes] = []
        for index, given in enumerate(asked.inputs):
            if isinstance(given, (str, TextPart)):
                inputs.append(given if isinstance(given, str) else given.text)
            else:
                inputs.append(read_url(url_of(given), f"input.{index}", self._service.fetch))
        return asked, model, inputs

    async def _follow(self, model: Model, inputs: list[str | bytes], receive: Receive) -> list[np.ndarray]:
        """The vectors of the inputs. If the client leaves or time is over, the work ends after the page at hand."""
        stop = threading.Event()

        async def work() -> list[np.ndarray]:
            assert model.turns is not None
            async with model.turns.take():
                return await to_thread.run_sync(_embed, model.vlm, inputs, stop)

        working, gone = asyncio.ensure_future(work()), asyncio.ensure_future(_leaving(receive))
        working.add_done_callback(lambda task: task.exception())  # it may end when nobody waits for it
        seconds = self._service.seconds
        try:
            await asyncio.wait({working, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise ClientGoneError
            raise APIError(504, f"the vectors were not there in {seconds:g} seconds; give fewer inputs", code="timeout")
        finally:
            stop.set()
            gone.cancel()


def _embed(vlm: VLM, inputs: list[str | bytes], stop: threading.Event) -> list[np.ndarray]:
    """The vectors of each input: texts that follow each other together, pages one by one."""
    vectors: list[np.ndarray] = []
    for is_text, group in groupby(inputs, lambda given: isinstance(given, str)):
        for given in [[*group]] if is_text else group:
            if stop.is_set():
                raise ClientGoneError
            vectors += vlm.embed(queries=given) if is_text else vlm.embed(given)
    return vectors


async def _leaving(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
