"""The process of the server: its socket, the threads that load, its signals and its end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import uvicorn

from ...graphs import InputError
from .app import Access, create_app
from .guard import Guard, log
from .models import Models

STALLED = 60  #: seconds after which a client that takes nothing of its answer is dropped


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        InputError: if the address cannot be had.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port is {port}; give 0 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror  # a resolver's are negative
        raise InputError(f"{host}, port {port}: {reason}; give another --host or --port") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections have it from the socket that takes them
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED * 1000)
    return listener


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End at SIGTERM with status 143. The first process of a container ignores signals that it has no handler for."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(listener: socket.socket, models: Models, access: Access) -> None:
    """Serve until a signal ends it; the models are loaded meanwhile.

    Raises:
        VLMError: if a model does not load.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    app, guard = create_app(models, access)
    loading = threading.Thread(target=_load, args=(models, listener.getsockname()), name="load", daemon=True)
    loading.start()
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    Server(config, models, guard).run([listener])
    if models.error is not None:
        raise models.error
    models.close()
    log.info("ended")
    if loading.is_alive():  # it cannot be interrupted
        sys.stderr.flush()
        os._exit(0)


def _load(models: Models, address: tuple) -> None:
    models.load()
    if models.error is None:
        host, port = address[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        names = ", ".join(f"{model.name} on {model.vlm.provider}" for model in models)
        log.info("serving %s at %s", names, where)


class Server(uvicorn.Server):
    """Ends when its requests have, after the first signal; at once after the second."""

    def __init__(self, config: uvicorn.Config, models: Models, guard: Guard) -> None:
        super().__init__(config)
        self._models, self._guard = models, guard
        self._has_told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain: the socket stays open, so that /health can tell of it."""
        if self._models.draining:
            os._exit(128 + sig)
        self._models.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end."""
        if self._models.draining and not self._has_told:
            self._has_told = True
            log.info("draining: %d requests are being answered; another signal ends them", self._guard.active)
        drained = self._models.draining and self._guard.active == 0
        return await super().on_tick(counter) or drained or self._models.error is not None
