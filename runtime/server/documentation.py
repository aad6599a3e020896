"""`/openapi.json`, made of the models that check requests, and `/docs`, a page made of it: no script, no other host."""

from __future__ import annotations

from html import escape
from typing import Any

from pydantic.json_schema import models_json_schema

from .embeddings.protocol import EmbeddingRequest
from .protocol import ChatRequest, ScoreRequest

REFERENCE = "#/components/schemas/{model}"
STATUSES = {
    "400": "a field is wrong, or not supported",
    "401": "the API key is missing or wrong",
    "404": "no such path, or no such model",
    "405": "the path does not take the method",
    "408": "the body did not come in time",
    "413": "the body, or what a URL names, is too large",
    "415": "the body is not JSON by its Content-Type",
    "421": "the Host header has another name",
    "422": "an image cannot be read, or the request is beyond a limit of the model or the server",
    "429": "the queue is full; Retry-After says when to ask again",
    "500": "the server failed",
    "503": "the server is loading, draining or out of memory",
    "504": "the answer took too long",
}
#: Method, path, body and purpose.
PATHS: list[tuple[str, str, type | None, str]] = [
    ("POST", "/v1/chat/completions", ChatRequest, "Answer a question about images; OpenAI's chat completions."),
    ("POST", "/v1/score", ScoreRequest, "How likely given answers are."),
    ("POST", "/v1/embeddings", EmbeddingRequest, "Vectors of pages and queries, of models that make them."),
    ("GET", "/v1/models", None, "The models, and what each can do."),
    ("GET", "/v1/models/{name}", None, "One of them."),
    ("GET", "/health", None, "200 if the server answers, 503 while it loads or drains. Needs no key."),
    ("GET", "/metrics", None, "Metrics for Prometheus."),
    ("GET", "/openapi.json", None, "This description for programs."),
    ("GET", "/docs", None, "This description for people."),
    ("GET", "/", None, "A page to try the models."),
]
STYLE = """\
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-top: 1px solid #8884; }
code { font-family: ui-monospace, monospace; }
"""


def openapi(version: str) -> dict[str, Any]:
    """The description in OpenAPI 3.1."""
    kinds = [body for _, _, body, _ in PATHS if body is not None]
    _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=REFERENCE)
    problems = {status: {"description": text} for status, text in STATUSES.items()}
    paths: dict[str, Any] = {}
    for method, path, body, purpose in PATHS:
        operation: dict[str, Any] = {"summary": purpose, "responses": {"200": {"description": "as asked"}, **problems}}
        if body is not None:
            reference = {"schema": {"$ref": REFERENCE.format(model=body.__name__)}}
            operation["requestBody"] = {"required": True, "content": {"application/json": reference}}
        paths[path] = {method.lower(): operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "onnx-vlm", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(version: str) -> str:
    """The description as HTML."""
    described = openapi(version)
    schemas = described["components"]["schemas"]
    paths = _table(("path", ""), [(f"{method} {path}", purpose) for method, path, _, purpose in PATHS])
    bodies = "".join(_body(name, schemas[name]) for name in sorted(schemas, key=lambda name: name.endswith("Part")))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<title>onnx-vlm</title><link rel="icon" href="/page/icon.svg"><link rel="stylesheet" href="/docs/style.css">'
        f"<h1>onnx-vlm {escape(version)}</h1>"
        f"{paths}<h2>Bodies</h2>{bodies}<h2>Errors</h2>{_table(('status', ''), list(STATUSES.items()))}</html>"
    )


def _body(name: str, schema: dict[str, Any]) -> str:
    """A table of a body's fields."""
    rows = [(field, _kind(about)) for field, about in schema.get("properties", {}).items()]
    about = escape(schema.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{about}</p>{_table(("field", "value"), rows)}'


def _kind(schema: dict[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_kind(member) for member in schema[union])
    if "const" in schema or "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return schema.get("type", "any")


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{escape(about)}" for name, about in rows)
    return f"<table><tr><th>{head[0]}<th>{head[1]}{cells}</table>"
