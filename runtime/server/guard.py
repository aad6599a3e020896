"""What stands before every request: its id, the host and the key that it must name, and the log.

The log has no contents: no path that is not known, no message of an error.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import CLIENT_GONE, APIError, ClientGoneError, explain
from .metrics import Metrics
from .models import Models

log = logging.getLogger("onnx_vlm.server")

DEBUG = "ONNX_VLM_DEBUG"
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: What needs no key: the state of the server, and files that are the same everywhere.
OPEN = ("/health", "/", "/docs", "/docs/style.css", "/openapi.json")
OPEN_FOLDER = "/page/"
HEADERS = {
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
        " media-src 'self' blob: data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
}


@dataclass
class Record:
    """One request, for the log: what its handler adds to `about` stands there too."""

    id: str
    arrived: float = field(default_factory=time.perf_counter)
    status: int = 0
    about: dict[str, object] = field(default_factory=dict)


class Guard:
    """ASGI middleware around the application.

    Args:
        key: what requests must have as their bearer token; None for no key.
        hosts: the names that a request may call this server by, so that no other site's name leads a browser here;
            None for any.
        paths: those that logs and metrics name.

    Attributes:
        active: how many requests are being answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        models: Models,
        metrics: Metrics,
        key: str | None,
        hosts: Collection[str] | None,
        paths: Collection[str],
    ) -> None:
        self._app, self._models, self._metrics = app, models, metrics
        self._key = None if key is None else key.encode()
        self._hosts, self._paths = hosts, paths
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this server speaks HTTP alone, not {scope['type']}")
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        record = Record(request_id if ID.fullmatch(request_id) else secrets.token_hex(8))
        scope.setdefault("state", {})["record"] = record

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                marked = MutableHeaders(scope=message)
                marked["x-request-id"] = record.id
                for name, value in HEADERS.items():
                    marked.setdefault(name, value)
            await send(message)

        self.active += 1
        try:
            self._check(scope, headers)
            await self._app(scope, receive, send_marked)
        except ClientGoneError:
            record.status = CLIENT_GONE
        except APIError as error:
            challenge = {"www-authenticate": "Bearer"} if error.status == 401 else None
            await error.response(challenge)(scope, receive, send_marked)
        except Exception as error:
            self._tell(record, error)
            if not record.status:
                await explain(error).response()(scope, receive, send_marked)
        finally:
            self.active -= 1
            self._end(record, scope)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise an APIError for a request that is not let in."""
        host = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if self._hosts is not None and host not in self._hosts:
            raise APIError(
                421, "this server is not called by the name in the Host header; --allow-host adds one", code="bad_host"
            )
        if not (scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDER) or self._knows_key(headers)):
            raise APIError(401, "the API key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key")
        if scope["method"] == "POST" and self._models.status != "ok":
            raise APIError(503, f"the server is {self._models.status}; try again", code=self._models.status)

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self._key or b"")  # takes as long for any key
        return self._key is None or (scheme.lower() == "bearer" and right)

    def _tell(self, record: Record, error: Exception) -> None:
        """Log where an unexpected error came from, without its message: that may quote the request."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        log.error("%s unexpected %s at %s:%s", record.id, type(error).__name__, last.filename, last.lineno)
        if os.environ.get(DEBUG):
            log.error("%s", "".join(traceback.format_exception(error)))

    def _end(self, record: Record, scope: Scope) -> None:
        """Log and count a request."""
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(record.status)).inc()
        level = logging.DEBUG if path in ("/health", "/metrics") else logging.INFO
        seconds = time.perf_counter() - record.arrived
        about = "".join(f" {name}={value}" for name, value in record.about.items())
        log.log(level, "%s %s %s %d %.3fs%s", record.id, _method(scope), path, record.status, seconds, about)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 8 else "other"
