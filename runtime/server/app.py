"""The ASGI application: which path leads where, and what stands before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ...graphs import VLMError
from . import documentation
from .body import Bodies
from .embeddings.endpoint import EmbeddingsEndpoint
from .endpoints import ChatEndpoint, ScoreEndpoint, Service
from .errors import APIError, json_response, on_error
from .fetch import Fetcher
from .guard import Guard
from .metrics import Metrics
from .models import Models

PAGE = Path(__file__).parent / "page"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Access:
    """Who may ask for how much.

    Attributes:
        api_key: what requests must have; None for none.
        hosts: names that requests may call the server by; None for any.
        media_domains: hosts that images may be fetched from.
        cors_origins: origins whose pages may read answers.
        max_body: bytes of a request's body, and of what a URL names.
        max_bodies: bytes of all bodies that are held at once.
        max_seconds: that an answer may take.
    """

    api_key: str | None = None
    hosts: Sequence[str] | None = LOOPBACK
    media_domains: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_body: int = 20 << 20
    max_bodies: int = 512 << 20
    max_seconds: float = 600


def create_app(models: Models, access: Access, fetch: Callable[[str], bytes] | None = None) -> tuple[ASGIApp, Guard]:
    """The application, and its guard, which knows how many requests it is answering.

    Args:
        fetch: returns the bytes that a URL names; asks `access.media_domains` if None.
    """
    metrics = Metrics(models)
    bodies = Bodies(access.max_body, access.max_bodies)
    fetch = fetch or Fetcher(access.media_domains, access.max_body)
    service = Service(models, metrics, bodies, fetch, access.max_seconds)
    routes = [
        Route("/v1/chat/completions", ChatEndpoint(service), methods=["POST"]),
        Route("/v1/score", ScoreEndpoint(service), methods=["POST"]),
        Route("/v1/embeddings", EmbeddingsEndpoint(service), methods=["POST"]),
        Route("/v1/models", service.list_models),
        Route("/v1/models/{name:path}", service.show_model),
        Route("/health", service.health),
        Route("/metrics", service.show_metrics),
        Route("/openapi.json", _show_schema),
        Route("/docs", _show_docs),
        Route("/docs/style.css", _show_style),
        Route("/", _show_page),
        Mount("/page", StaticFiles(directory=PAGE, check_dir=False)),
    ]
    handled = (HTTPException, APIError, VLMError, ValidationError, Exception)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(handled, on_error))
    paths = [route.path for route in routes if isinstance(route, Route)]
    guard = Guard(app, models, metrics, access.api_key, access.hosts, paths)
    if not access.cors_origins:
        return guard, guard
    cors = CORSMiddleware(
        guard,
        allow_origins=access.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    return cors, guard


async def _show_schema(request: Request) -> Response:
    return json_response(documentation.openapi(version("onnx-vlm")))


async def _show_docs(request: Request) -> Response:
    return HTMLResponse(documentation.page(version("onnx-vlm")))


async def _show_style(request: Request) -> Response:
    return Response(documentation.STYLE, media_type="text/css")


async def _show_page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html")
