"""Images from the web: from domains that are allowed, at public addresses, within bounds."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import shapes
import trustme
from onnx_vlm.runtime.server import fetch as fetching
from onnx_vlm.runtime.server.errors import APIError
from onnx_vlm.runtime.server.fetch import Fetcher, is_public_address
from onnx_vlm.runtime.server.models import Models
from server_helpers import SCENE, asking, image_part, png, serving

IMAGE = png(shapes.draw(SCENE))
HOST = "images.example"


class Handler(BaseHTTPRequestHandler):
    """Answers as the path says."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x")
        else:
            self.send_response(200 if self.path.startswith("/image.png") else 404)
            self.end_headers()
            self.wfile.write(IMAGE)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def web(authority: trustme.CA) -> Iterator[int]:
    """A web server of `HOST` with TLS; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "other.example").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *arguments: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


class Resolver:
    """Names and their addresses, in place of the system's; each address leads to the web server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
        self.addresses = {HOST: ["203.0.113.5"]}
        self.asked: list[str] = []
        self.connected: list[tuple[str, int]] = []
        connect = socket.create_connection

        def resolve(host: str, port: int, **options: object) -> list:
            self.asked.append(host)
            return [(2, 1, 6, "", (address, port)) for address in self.addresses[host]]

        def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
            self.connected.append(address)
            return connect(("127.0.0.1", port), timeout)

        stub = SimpleNamespace(**vars(socket) | {"getaddrinfo": resolve, "create_connection": create_connection})
        monkeypatch.setattr(fetching, "socket", stub)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch, web: int) -> Resolver:
    return Resolver(monkeypatch, web)


Make = Callable[..., Fetcher]


@pytest.fixture
def make(authority: trustme.CA) -> Make:
    """A fetcher that trusts the authority, and takes the documentation's network for public."""

    def made(domains: tuple[str, ...] = (HOST,), most: int = 1 << 20, seconds: float = 10.0) -> Fetcher:
        context = ssl.create_default_context()
        authority.configure_trust(context)

        def is_public(address: str) -> bool:
            return address.startswith("203.0.113.") or is_public_address(address)

        return Fetcher(domains, most, seconds, is_public, context)

    return made


def test_an_image_is_fetched_from_the_address_that_was_checked(make: Make, resolver: Resolver):
    Handler.asked.clear()
    assert make()(f"https://{HOST}/image.png?a=1#b") == IMAGE
    assert resolver.asked == [HOST]
    assert resolver.connected == [("203.0.113.5", 443)]
    assert Handler.asked == [(HOST, "/image.png?a=1")]


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/image.png",
        f"https://{HOST}:8443/image.png",
        f"https://user@{HOST}/image.png",
        f"https://{HOST}.evil.example/image.png",
        f"https://evil.example/{HOST}",
        f"https://evil.example#@{HOST}/",
        f"https://evil.example\\@{HOST}/",
        "https://127.0.0.1/image.png",
        "https://[::1]/image.png",
        "https://[bad/",
        f"ftp://{HOST}/image.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "",
    ],
)
def test_other_urls_are_refused_without_asking(make: Make, resolver: Resolver, url: str):
    with pytest.raises(APIError) as refused:
        make()(url)
    assert refused.value.status == 400
    assert resolver.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff02::1",
        "::",
    ],
)
def test_an_address_that_is_not_public_is_refused(make: Make, resolver: Resolver, address: str):
    for addresses in ([address], ["203.0.113.5", address]):
        resolver.addresses[HOST] = addresses
        with pytest.raises(APIError, match="not public") as refused:
            make()(f"https://{HOST}/image.png")
        assert refused.value.status == 400
    assert resolver.connected == []


def test_public_addresses_are_public():
    assert all(map(is_public_address, ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8")))


def test_a_redirect_is_checked_anew(make: Make, resolver: Resolver):
    assert make()(f"https://{HOST}/to/https://{HOST}/image.png") == IMAGE
    assert make()(f"https://{HOST}/to//image.png") == IMAGE
    assert resolver.asked == [HOST] * 4
    for target in ("http://images.example/image.png", "https://other.example/image.png", "file:///etc/passwd"):
        with pytest.raises(APIError) as refused:
            make()(f"https://{HOST}/to/{target}")
        assert refused.value.status == 400
    resolver.addresses["other.example"] = ["127.0.0.1"]
    with pytest.raises(APIError, match="not public"):
        make((HOST, "other.example"))(f"https://{HOST}/to/https://other.example/image.png")
    with pytest.raises(APIError, match="redirected more than 3 times"):
        make()(f"https://{HOST}" + f"/to/https://{HOST}" * 5 + "/image.png")


def test_a_certificate_of_another_name_is_refused(make: Make, resolver: Resolver):
    resolver.addresses["third.example"] = ["203.0.113.5"]
    with pytest.raises(APIError, match="SSLCertVerificationError") as refused:
        make(("third.example",))("https://third.example/image.png")
    assert refused.value.status == 422


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [("missing", 422, "status 404"), ("short/", 422, "ends early"), ("drip/", 422, "cannot be fetched")],
)
def test_an_answer_that_is_none_is_told(make: Make, resolver: Resolver, path: str, status: int, words: str):
    began = time.monotonic()
    with pytest.raises(APIError, match=words) as refused:
        make(seconds=0.5)(f"https://{HOST}/{path}")
    assert refused.value.status == status
    assert time.monotonic() - began < 5


def test_bytes_are_bounded(make: Make, resolver: Resolver):
    assert make(most=len(IMAGE))(f"https://{HOST}/image.png") == IMAGE
    with pytest.raises(APIError, match="more than") as refused:
        make(most=len(IMAGE) - 1)(f"https://{HOST}/image.png")
    assert refused.value.status == 413


def test_a_message_may_name_an_allowed_url(models: Models, make: Make, resolver: Resolver):
    with serving(models, fetch=make()) as server, server.http() as client:
        answers = []
        for url in (None, f"https://{HOST}/image.png"):
            body = {"model": "paligemma2", "messages": asking("caption", image_part(url)), "temperature": 0}
            answers.append(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])
        body["messages"] = asking("caption", image_part(f"https://{HOST}/missing"))
        refused = client.post("/v1/chat/completions", json=body)
    assert answers[0] == answers[1]
    assert resolver.asked == [HOST] * 2
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "messages.0.content.0"
