"""Errors as OpenAI's clients read them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...graphs import InputError, VLMError
from ..scheduling import ClosedError, QueueFullError
from .answers import to_json

RETRY_AFTER = "1"  #: seconds that a client is told to wait where the server has too much to do

CLIENT_GONE = 499  #: stands in logs and metrics for a request whose client has left; nobody reads an answer


class APIError(Exception):
    """A request that is answered with an error.

    Args:
        status: of the response, 400 or more.
        message: says what was wrong and what to do.
        param: the field that it is about.
        code: a name for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The error as a response."""
        later = {"retry-after": RETRY_AFTER} if self.status in (429, 503) else {}
        return json_response(self.body(), self.status, {**later, **(headers or {})})


class ClientGoneError(Exception):
    """The client has closed its connection."""


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(to_json(value), status, headers, "application/json")


def explain(error: Exception) -> APIError:
    """What a client is told of an error.

    An `InputError` that comes as an event is of what a request contains: a wrong field was refused before.
    """
    if isinstance(error, APIError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, QueueFullError):
        return APIError(429, str(error), code="queue_full")
    if isinstance(error, ClosedError):
        return APIError(503, "the server is about to end; ask another one", code="draining")
    if isinstance(error, InputError):
        return APIError(422, str(error), code="invalid_input")
    if isinstance(error, VLMError):
        return APIError(500, str(error), code="generation_failed")
    if isinstance(error, MemoryError):
        return APIError(503, "the server is out of memory; ask for less at once, or later", code="out_of_memory")
    return APIError(500, "unexpected error; the server's log tells of it by the request's id", code="internal_error")


def _invalid(error: ValidationError) -> APIError:
    """The first of the problems that pydantic has found; of a union's, that which came farthest."""
    problem = max(error.errors(include_input=False, include_url=False, include_context=False), key=_depth)
    if problem["type"] == "json_invalid":
        return APIError(400, f"the body is not JSON: {problem['msg']}", code="invalid_json")
    names = [str(part) for part in problem["loc"] if not (isinstance(part, str) and part in _BRANCHES)]
    param = ".".join(name for name in names if "[" not in name) or None
    return APIError(400, f"{param or 'the body'}: {problem['msg']}", param, "invalid_value")


def _depth(problem: object) -> int:
    return len(problem["loc"])


#: What pydantic calls the branches of the unions in `protocol`.
_BRANCHES = {"str", "int", "float", "bool", "text", "image_url", "video_url"}


async def on_error(request: Request, error: Exception) -> Response:
    """Answer a request with an error that nothing else has answered."""
    if isinstance(error, HTTPException):
        message = {
            404: "there is no such path; GET /docs lists those that are",
            405: "this path does not take this method; GET /docs lists those that are taken",
        }.get(error.status_code, error.detail)
        return APIError(error.status_code, message).response(error.headers)
    explained = explain(error)
    request.state.record.about["error"] = explained.code
    return explained.response()
