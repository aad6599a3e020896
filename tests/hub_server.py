"""A server of repositories in memory that speaks as much of the Hub's protocol as its client uses for models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 10_000  #: bytes from which a file is kept as the Hub keeps large ones, by its checksum


@dataclass
class Repository:
    """One repository: its files by name, and what its page says."""

    files: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    tags: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a revision: of the branch main, a tag, or the commit of either."""
        known = {"main": self.files, **self.tags}
        return known.get(revision) or {commit(files): files for files in known.values()}.get(revision)


def commit(files: dict[str, bytes]) -> str:
    """The commit of files: a checksum of 40 digits."""
    listed = [f"{name} {hashlib.sha1(content).hexdigest()}" for name, content in sorted(files.items())]
    return hashlib.sha1("\n".join(listed).encode()).hexdigest()


class Hub:
    """The server's state.

    Attributes:
        repositories: by id.
        requests: the method and path of each request, in their order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}

    def fetched(self) -> list[str]:
        """The names of the files whose contents were fetched."""
        return [line.split("/", 5)[5] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def run() -> Iterator[Hub]:
    """Run the server until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_PUT(self) -> None:
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"")

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer hf_writer":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            exists = name in self.hub.repositories
            private = asked.get("private", False) or asked.get("visibility") == "private"
            self.hub.repositories.setdefault(name, Repository(private=private))
            return self._json({"url": f"{self.hub.url}/{name}"}, 409 if exists else 200)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]})
        _, _, user, name, action, _ = path.split("/")
        repository = self.hub.repositories[f"{user}/{name}"]
        if action == "preupload":
            return self._json({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        assert action == "commit", path
        self._commit(repository, [json.loads(line) for line in body.splitlines()])
        sha = commit(repository.files)
        return self._json(
            {"commitUrl": f"{self.hub.url}/{user}/{name}/commit/{sha}", "commitOid": sha, "success": True}
        )

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """How a large file is uploaded."""
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}"}}}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _commit(self, repository: Repository, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.large[value["oid"]]

    def _get(self) -> None:
        path = self._path()
        name = "/".join(path.split("/")[2:4] if path.startswith("api/models/") else path.split("/")[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and "Authorization" not in self.headers):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if path.startswith("api/models/"):
            sha = commit(repository.files)
            return self._json({"id": name, "sha": sha, "cardData": repository.card, "siblings": [], "tags": []})
        if repository.gated:
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        _, _, resolve, revision, file = path.split("/", 4)
        assert resolve == "resolve", path
        files = repository.at(unquote(revision))
        if files is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = files.get(unquote(file))
        headers = {"X-Repo-Commit": commit(files)}
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found", headers)
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if len(content) >= LARGE:
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        return self._send(200, content, headers)

    def _path(self) -> str:
        self.hub.requests.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path.strip("/")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
