"""Images and videos from the web: https alone, from domains that are allowed, at public addresses alone.

A name is resolved once, and the connection is made to the address that was checked. A redirect is another request.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, urljoin, urlsplit

from .errors import APIError

MOST_REDIRECTS = 3
PORT = 443
REDIRECTS = {301, 302, 303, 307, 308}
#: Networks that are public by themselves, and lead to any IPv4 address: NAT64 and 6to4 (RFC 6052, 8215, 3056).
TRANSLATED = [ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")]


class Fetcher:
    """Gets what URLs name.

    Args:
        domains: the names of hosts that may be asked, each exactly as it stands in a URL.
        max_bytes: the most bytes of one answer.
        seconds: for one URL, redirects included.
        is_public: whether an address may be asked.
        context: how certificates are checked.
    """

    def __init__(
        self,
        domains: Collection[str],
        max_bytes: int,
        seconds: float = 10,
        is_public: Callable[[str], bool] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._domains = {domain.lower() for domain in domains}
        self._max_bytes, self._seconds = max_bytes, seconds
        self._is_public = is_public or is_public_address
        self._context = context or ssl.create_default_context()

    def __call__(self, url: str) -> bytes:
        """The bytes that a URL names. The error tells nothing of what was found behind it.

        Raises:
            APIError: if it is not allowed (400), or does not answer as it should (422).
        """
        sockets = Sockets()
        # A host that sends a byte at a time is never idle, so no timeout of a socket would end it.
        timer = threading.Timer(self._seconds, sockets.cut)
        timer.daemon = True
        timer.start()
        try:
            for _ in range(MOST_REDIRECTS + 1):
                answer = self._ask(self._allowed(url), sockets)
                sockets.check()  # what was cut off looks like an end
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise APIError(422, f"the URL cannot be fetched ({type(error).__name__})", code="fetch_failed") from None
        finally:
            timer.cancel()
            sockets.close()
        raise APIError(422, f"the URL is redirected more than {MOST_REDIRECTS} times", code="fetch_failed")

    def _allowed(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise APIError(400, "a URL is malformed", code="url_not_allowed") from None
        if parts.scheme != "https" or port not in (None, PORT) or parts.username is not None or not parts.hostname:
            raise APIError(
                400, "a URL must be a data URI, or https without a port and a user's name", code="url_not_allowed"
            )
        if parts.hostname not in self._domains:
            known = ", ".join(sorted(self._domains)) or "none: send a data URI"
            raise APIError(400, f"this host may not be asked; allowed are {known}", code="url_not_allowed")
        return parts

    def _ask(self, url: SplitResult, sockets: Sockets) -> bytes | str:
        """The bytes that a URL names, or where it is redirected to."""
        host = url.hostname or ""
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)]
        if not addresses or not all(map(self._is_public, addresses)):
            raise APIError(400, f"{host} has an address that is not public", code="url_not_allowed")
        connection = http.client.HTTPSConnection(host, timeout=self._seconds, context=self._context)
        raw = socket.create_connection((addresses[0], PORT), self._seconds)
        try:
            sockets.add(raw)
            connection.sock = self._context.wrap_socket(raw, server_hostname=host)
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("GET", target, headers={"Accept": "image/*, video/*", "User-Agent": "onnx-vlm"})
            response = connection.getresponse()
            if response.status in REDIRECTS and (location := response.headers.get("Location")):
                return location
            if response.status != 200:
                raise APIError(422, f"the URL answers with status {response.status}", code="fetch_failed")
            data = response.read(self._max_bytes + 1)
            if response.length and len(data) <= self._max_bytes:
                raise APIError(422, "the URL's answer ends early", code="fetch_failed")
        finally:
            raw.close()
            connection.close()
        if len(data) > self._max_bytes:
            raise APIError(413, f"the URL names more than {self._max_bytes} bytes, the most that are fetched")
        return data


def is_public_address(text: str) -> bool:
    """Whether an address is one of the public internet, and leads to no other."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    within = any(address in network for network in TRANSLATED if network.version == address.version)
    return address.is_global and not address.is_multicast and not within


class Sockets:
    """The connections of one fetch, which another thread may end at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._is_cut = False

    def add(self, connection: socket.socket) -> None:
        """Take a connection.

        Raises:
            TimeoutError: if `cut` was called before.
        """
        with self._lock:
            self.check()
            self._open.append(connection.dup())

    def check(self) -> None:
        """Raise a TimeoutError if `cut` was called."""
        if self._is_cut:
            raise TimeoutError

    def cut(self) -> None:
        """End all connections, whatever they are doing, and those to come."""
        with self._lock:
            self._is_cut = True
            for connection in self._open:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connections back to the system."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
