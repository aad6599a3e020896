"""The command `serve` as a process: it loads, answers, drains at a signal, and starts again after it was killed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import run_command
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime import cli
from onnx_vlm.runtime.cli.serve import is_loopback, name_bundles
from onnx_vlm.runtime.server import process
from server_helpers import wait_for

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
#: The command, with steps that take longer, so that an answer is running when a signal comes.
SLOW = """
import time
from onnx_vlm.runtime.scheduling.batch import Batch
advance = Batch.advance
def slow(batch):
    time.sleep(0.005)
    advance(batch)
Batch.advance = slow
from onnx_vlm.runtime.cli import main
main()
"""


class Process:
    """A running command."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-c", SLOW, "serve", *map(str, arguments), "--threads", "1"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()))
        self._reader.start()

    def find(self, pattern: str) -> re.Match[str] | None:
        """What the log says."""
        return re.search(pattern, "".join(list(self.log)))

    @property
    def url(self) -> str:
        """Where it listens, when it is ready."""
        wait_for(lambda: self.find(r"at (http://\S+)") is not None or self.process.poll() is not None, 60)
        said = self.find(r"at (http://\S+)")
        assert said, self.log
        return said[1]

    def end(self) -> int:
        """Its status."""
        status = self.process.wait(60)
        self._reader.join()
        assert "Traceback" not in "".join(self.log)
        return status


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Starts the command; what is left of it in the end is killed."""
    started: list[Process] = []

    def start(*arguments: object) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@contextmanager
def long_answer(url: str, pool: ThreadPoolExecutor) -> Iterator[Any]:
    """An answer that is running."""
    long = {**HELLO, "max_tokens": 300, "min_new_tokens": 300, "temperature": 0}
    answer = pool.submit(httpx.post, url + CHAT, json=long, timeout=60)
    wait_for(lambda: "onnx_vlm_rows" in httpx.get(f"{url}/metrics").text and running_rows(url) > 0)
    yield answer


def running_rows(url: str) -> float:
    found = re.search(r"^onnx_vlm_rows\{.*\} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0


def test_a_signal_lets_answers_end_and_nothing_begin(bundles: Callable[..., Path], serve: Callable[..., Process]):
    server = serve(f"{bundles('perception_lm')}=talks", "--port", 0)
    url = server.url
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["talks"]
    with ThreadPoolExecutor(1) as pool, long_answer(url, pool) as answer:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/health").json() == {"status": "draining"})
        assert httpx.get(f"{url}/health").status_code == 503
        refused = httpx.post(url + CHAT, json=HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert answer.result().status_code == 200
        assert answer.result().json()["usage"]["completion_tokens"] == 300
    assert server.end() == 0
    assert server.find("draining: 1 requests")


def test_a_second_signal_ends_at_once(bundles: Callable[..., Path], serve: Callable[..., Process]):
    server = serve(bundles("perception_lm"), "--port", 0)
    url = server.url
    with ThreadPoolExecutor(1) as pool, long_answer(url, pool) as answer:
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.end() == 128 + signal.SIGINT
        with pytest.raises(httpx.TransportError):
            answer.result()


def test_a_killed_server_starts_again(bundles: Callable[..., Path], serve: Callable[..., Process], tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = (bundles("perception_lm"), "--port", port, "--embedding-folder", tmp_path)
    for _ in range(2):
        server = serve(*arguments)
        url = server.url
        assert httpx.post(url + CHAT, json=HELLO).status_code == 200
        with ThreadPoolExecutor(1) as pool, long_answer(url, pool) as answer:
            server.process.kill()
            with pytest.raises(httpx.TransportError):
                answer.result()
        assert server.end() == -signal.SIGKILL


def test_a_signal_ends_it_while_it_fetches(
    serve: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        server = serve("user/bundle", "--port", 0)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 128 + signal.SIGTERM


def test_what_cannot_be_served_is_a_sentence(bundles: Callable[..., Path], tmp_path: Path):
    bundle = bundles("perception_lm")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_command("serve", bundle, "--port", port)
    assert refused.returncode == 2
    assert re.search(rf"127\.0\.0\.1, port {port}: Address already in use; give another", refused.stderr)
    refused = run_command("serve", tmp_path, "--port", 0)
    assert refused.returncode == 2
    assert "is no bundle" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-rows", "0"], "--max-rows is 0"),
        (["--max-seconds", "nan"], "--max-seconds is nan"),
        (["--max-images", "0"], "max_images is 0"),
        (["--api-key", ""], "API key"),
        (["--api-key", "a b "], "API key"),
        (["--host", "host.invalid"], "host.invalid"),
        (["--port", "99999"], "--port is 99999"),
    ],
)
def test_wrong_flags_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str):
    monkeypatch.setattr(process, "run", lambda *arguments: pytest.fail("it is served"))
    with pytest.raises(InputError, match=words):
        cli.app(["serve", "bundle", *arguments], standalone_mode=False)


def test_bundles_have_names(tmp_path: Path):
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert name_bundles(["x/small", "y=large", str(odd)]) == {"small": "x/small", "large": "y", "a=b": str(odd)}
    for wrong in (["a/x", "b/x"], ["a=x", "b=x"], ["a="], ["=a"]):
        with pytest.raises(InputError):
            name_bundles(wrong)


def test_loopback_is_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "")))
