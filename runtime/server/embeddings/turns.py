"""Requests for vectors one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ...scheduling import QueueFullError


class Turns:
    """Lets one request at a time go on. For the event loop's thread.

    Args:
        most: requests that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.waiting = self.running = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """A turn, as long as the block takes.

        Raises:
            QueueFullError: if too many wait.
        """
        if self._lock.locked() and self.waiting >= self._most:
            raise QueueFullError(f"{self.waiting} requests wait, the most that may; ask again later")
        self.waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self.waiting -= 1
        self.running = 1
        try:
            yield
        finally:
            self.running = 0
            self._lock.release()
