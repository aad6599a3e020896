"""Bodies of requests, bounded while they are read: each of them, and all that are held at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from .errors import APIError, ClientGoneError


class Bodies:
    """Reads bodies.

    Args:
        most: bytes of one.
        most_together: bytes of all that are held, from the first byte until the request is answered.
        seconds: in which a body must be there.
    """

    def __init__(self, most: int, most_together: int, seconds: float = 60) -> None:
        self._most, self._most_together, self._seconds = most, most_together, seconds
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[bytes]]:
        """The parts of a request's body. Its bytes count as held until the block is left.

        Raises:
            APIError: for a body that is too long (413), no JSON by its type (415), too late (408) or too much besides
                the others (429).
            ClientGoneError: if it ends early.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise APIError(415, "the body must be JSON: send Content-Type: application/json", code="not_json")
        announced = request.headers.get("content-length", "")
        if announced.isdigit():
            self._check(int(announced))
        chunks: list[bytes] = []
        size = 0
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        size += len(chunk)
                        self._held += len(chunk)
                        self._check(size)
                        chunks.append(chunk)
            except ClientDisconnect:
                raise ClientGoneError from None
            except TimeoutError:
                raise APIError(408, f"the body was not there in {self._seconds:g} seconds", code="body_late") from None
            yield chunks
        finally:
            self._held -= size

    def _check(self, size: int) -> None:
        if size > self._most:
            raise APIError(
                413, f"the body has more than {self._most} bytes, the most; send smaller images", code="body_too_large"
            )
        if self._held > self._most_together:
            raise APIError(429, "the server holds many large requests; try again", code="too_busy")
