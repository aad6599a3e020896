"""One submitted request as asyncio sees it: its events in order, and its end if the client leaves or time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias

from starlette.types import Receive

from ..results import Generation, Score
from ..scheduling import AnswerStream, Piece
from .errors import APIError, ClientGoneError

Event: TypeAlias = "Piece | Generation | list[Score]"


class Following:
    """The events of one request.

    Args:
        seconds: that the request may take.

    Attributes:
        see: is told of each piece when it comes, whoever reads it later.
    """

    def __init__(self, seconds: float) -> None:
        self.see: Callable[[Piece], None] = lambda piece: None
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._stream: AnswerStream | None = None

    def submit(self, submit: Callable[..., AnswerStream], *arguments: Any, **options: Any) -> None:
        """Submit the request; in any thread."""
        self._stream = submit(*arguments, on_event=self._put, **options)

    def _put(self, event: Event | Exception) -> None:
        """Take an event, in a thread of the scheduler."""
        if isinstance(event, Piece):
            self.see(event)
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self, receive: Receive) -> AsyncGenerator[Event, None]:
        """Pieces, and at last the result. However it is left, the request has ended then, or is cancelled.

        Raises:
            ClientGoneError: if the client leaves.
            APIError: after the time that a request may take.
            Exception: that the request ends with.
        """
        gone = asyncio.ensure_future(self._notice_leaving(receive))
        late = f"the answer was not complete in {self._seconds:g} seconds; ask for fewer tokens"
        timer = self._loop.call_later(self._seconds, self._stop, APIError(504, late, code="timeout"))
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if not isinstance(event, Piece):
                    return
        finally:
            timer.cancel()
            gone.cancel()
            self._cancel()

    def _stop(self, reason: Exception) -> None:
        """End the request; at once, though its events may be read late."""
        self._cancel()
        self._events.put_nowait(reason)

    def _cancel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    async def _notice_leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stop(ClientGoneError())
