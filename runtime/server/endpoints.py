"""What the paths of OpenAI's protocol do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...graphs import InputError, VLMError
from ..results import Generation
from ..scheduling import Piece
from .answers import Completion, flat, regions, scores, to_json
from .body import Bodies
from .conversation import to_request
from .errors import APIError, ClientGoneError, explain, json_response
from .follow import Event, Following
from .guard import Record
from .metrics import Metrics
from .models import Model, Models
from .protocol import ChatRequest, Question, ScoreRequest

Q = TypeVar("Q", bound=Question)


@dataclass(frozen=True)
class Service:
    """What the endpoints share.

    Attributes:
        fetch: returns the bytes that a URL names.
        seconds: that an answer may take.
    """

    models: Models
    metrics: Metrics
    bodies: Bodies
    fetch: Callable[[str], bytes]
    seconds: float

    async def submit(self, kind: type[Q], parts: list[bytes], record: Record) -> tuple[Q, Model, Following]:
        """Read a body and submit the request in it.

        Args:
            parts: of the body; they are taken out.
        """
        following = Following(self.seconds)

        def work() -> tuple[Q, Model, Following]:
            body = b"".join(parts)
            parts.clear()
            asked = kind.model_validate_json(body)
            model = self.models.get(asked.model)
            record.about["model"] = model.name
            following.see = self.metrics.watch(model.name, record.arrived).see
            if model.scheduler is None:
                raise APIError(
                    400, f"{model.name} makes vectors; ask for them at /v1/embeddings", "model", "model_answers_nothing"
                )
            request = to_request(asked, model.vlm.manifest, self.fetch)
            try:
                if isinstance(asked, ChatRequest):
                    following.submit(model.scheduler.submit, request, **asked.options())
                elif isinstance(asked, ScoreRequest):
                    following.submit(model.scheduler.submit_score, request, asked.candidates)
            except InputError as error:
                raise APIError(400, str(error), code="invalid_value") from None
            return asked, model, following

        return await to_thread.run_sync(work)  # it may decode and fetch images

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        status = self.models.status
        return json_response({"status": status}, 200 if status == "ok" else 503)

    async def list_models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        if self.models.status == "loading":
            raise APIError(503, "the server is loading; try again", code="loading")
        return json_response({"object": "list", "data": [model.entry() for model in self.models]})

    async def show_model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        return json_response(self.models.get(request.path_params["name"]).entry())

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        text = await asyncio.to_thread(self.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4")


class ScoreEndpoint:
    """`POST /v1/score`, as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["state"]["record"]
        async with self._service.bodies.read(Request(scope, receive)) as parts:
            _, model, following = await self._service.submit(ScoreRequest, parts, record)
            async with aclosing(following.events(receive)) as events:
                scored: Any = [event async for event in events][-1]
            answer = scores(record.id, int(time.time()), model.name, scored)
            await json_response(answer)(scope, receive, send)


class ChatEndpoint:
    """`POST /v1/chat/completions`, as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["state"]["record"]
        async with self._service.bodies.read(Request(scope, receive)) as parts:
            asked, model, following = await self._service.submit(ChatRequest, parts, record)
            completion = Completion(record.id, int(time.time()), model.name, model.texts)
            async with aclosing(following.events(receive)) as events:
                if asked.stream:
                    usage = asked.stream_options is not None and asked.stream_options.include_usage
                    await self._stream(events, completion, bool(usage), model, record, send)
                    return
                answer = None
                async for event in events:
                    answer = event
            assert isinstance(answer, Generation)
            self._note(answer, model, record)
            await json_response(completion.whole(answer))(scope, receive, send)

    async def _stream(
        self,
        events: AsyncGenerator[Event, None],
        completion: Completion,
        usage: bool,
        model: Model,
        record: Record,
        send: Send,
    ) -> None:
        """Send the events of a request as server-sent events."""
        first = await anext(events)  # what is wrong before it is an error with a status of its own
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(value: bytes) -> None:
            await send({"type": "http.response.body", "body": b"data: " + value + b"\n\n", "more_body": True})

        chunks = _Chunks(completion)
        try:
            event: Event = first
            while isinstance(event, Piece):
                for chunk in chunks.of_piece(event):
                    await write(to_json(chunk))
                event = await anext(events)
            assert isinstance(event, Generation)
            self._note(event, model, record)
            for chunk in chunks.of_end(event, usage):
                await write(to_json(chunk))
        except ClientGoneError:
            raise
        except Exception as error:
            explained = explain(error)
            record.about["error"] = explained.code
            await write(to_json(explained.body()))
            if not isinstance(error, (APIError, VLMError)):
                raise
        finally:
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _note(self, answer: Generation, model: Model, record: Record) -> None:
        """Count an answer, for metrics and log."""
        self._service.metrics.ended(answer, model.name)
        record.about["prompt"] = answer.prompt_tokens
        record.about["answer"] = sum(len(choice.token_ids) for choice in flat(answer))
        record.about["finish"] = answer.finish_reason


class _Chunks:
    """The chunks of one stream."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion
        self._begun: set[int] = set()

    def of_piece(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunk of a piece; none if it has nothing to tell."""
        if not piece.text and not piece.logprobs and piece.grounded is None:
            return []
        found = {} if piece.grounded is None else {"onnx_vlm": piece.grounded}
        delta = self._delta(piece.index, content=piece.text, **found)
        return [self._completion.chunk(piece.index, delta, piece.logprobs)]

    def of_end(self, answer: Generation, usage: bool) -> list[dict[str, Any]]:
        """The last chunk of each choice, and that of the number of tokens if it is wanted."""
        ends = [
            self._completion.chunk(
                index, self._delta(index, onnx_vlm=regions(choice)), finish_reason=choice.finish_reason
            )
            for index, choice in enumerate(flat(answer))
        ]
        return [*ends, self._completion.last(answer)] if usage else ends

    def _delta(self, index: int, **delta: Any) -> dict[str, Any]:
        """What is new of a choice; the first time it has the role too."""
        if index in self._begun:
            return delta
        self._begun.add(index)
        return {"role": "assistant", "content": "", **delta}
