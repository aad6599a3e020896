"""What the tests of the server and its soak share: a running server, and bodies of requests."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import shapes
import uvicorn
from onnx_vlm.runtime import Limits, load
from onnx_vlm.runtime.server.app import Access, create_app
from onnx_vlm.runtime.server.guard import Guard
from onnx_vlm.runtime.server.models import Models
from onnx_vlm.runtime.server.process import listen
from PIL import Image

SCENE = shapes.scene(shapes.HELD_OUT)


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    models: Models
    guard: Guard

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def openai(self, **options: Any) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(**({"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | options))

    def http(self, **options: Any) -> httpx.Client:
        """A client that takes any request."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def until_idle(self) -> None:
        """Wait until no request is answered and no row is taken."""
        wait_for(lambda: self.guard.active == 0 and not any(busy(self.models)))


def busy(models: Models) -> Iterator[int]:
    """How many requests each scheduler has."""
    for model in models:
        if model.turns is not None:
            yield model.turns.running + model.turns.waiting
        else:
            state = model.scheduler.state()
            yield state.running + state.queued


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come to be so"
        time.sleep(0.01)


def load_models(folders: Mapping[str, Path], limits: Limits | None = None, **schedulers: Any) -> Models:
    """Models that are loaded, on one thread."""
    models = Models(folders, lambda folder: load(folder, threads=1, limits=limits), **schedulers)
    models.load()
    assert models.error is None, models.error
    return models


@contextmanager
def serving(
    models: Models,
    access: Access | None = None,
    fetch: Callable[[str], bytes] | None = None,
    send_buffer: int | None = None,
) -> Iterator[Running]:
    """A server of models on a port of its own.

    Args:
        send_buffer: bytes that the system holds for a client that does not read; as many as it likes if None.
    """
    app, guard = create_app(models, access or Access(), fetch)
    listener = listen("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", models, guard)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def png(image: Image.Image) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str | None = None) -> dict[str, Any]:
    """A part of a message with an image; the held-out scene if None."""
    return {"type": "image_url", "image_url": {"url": url or data_uri(png(shapes.draw(SCENE)))}}


def asking(text: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one message of the user."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
