"""Messages to a request of the runtime. What a message names is bytes by then: no path and no URL gets further."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any

from ...graphs.manifest import ChatPrompt, Manifest
from ..inputs import Request
from .errors import APIError
from .protocol import ImagePart, Message, Question, TextPart, Url, VideoPart

DATA_URI = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)
#: More characters than this for each of the model's positions are refused before they are made into tokens.
CHARACTERS = 32


def to_request(question: Question, manifest: Manifest, fetch: Callable[[str], bytes]) -> Request:
    """What a model is asked.

    Args:
        fetch: returns the bytes that a URL names.

    Raises:
        APIError: for messages that the model does not take, and media that are not given as they should.
    """
    characters = sum(len(_text(message)) for message in question.messages)
    if characters > CHARACTERS * manifest.generation.max_positions:
        raise APIError(
            422,
            f"the messages have {characters} characters, the model {manifest.generation.max_positions} positions;"
            " shorten them",
            "messages",
            "context_length_exceeded",
        )
    media: dict[str, list[bytes]] = {"image": [], "video": []}
    if isinstance(manifest.prompt, ChatPrompt):
        messages = [
            _turn(message, f"messages.{index}", fetch, media) for index, message in enumerate(question.messages)
        ]
        return Request(messages, media["image"], media["video"], question.bboxes)
    _check_single(question.messages)
    _turn(question.messages[0], "messages.0", fetch, media)
    return Request(_text(question.messages[0]), media["image"], media["video"], question.bboxes)


def _check_single(messages: Sequence[Message]) -> None:
    """Raise an APIError for a conversation that would have to be cut."""
    if len(messages) > 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages[:8])
        raise APIError(
            400,
            "this model answers one message of the user, and has no turns and no system messages: send that message"
            f" alone; given are {len(messages)} ({roles})",
            "messages",
            "conversation_not_supported",
        )


def _turn(message: Message, where: str, fetch: Callable[[str], bytes], media: dict[str, list[bytes]]) -> dict[str, Any]:
    """A message as chat templates take it. What it names is added to `media`."""
    if message.role in ("system", "developer", "assistant"):
        if not isinstance(message.content, str) and not all(isinstance(part, TextPart) for part in message.content):
            raise APIError(400, f"{where}: images and videos belong to messages of the user", where)
        role = "assistant" if message.role == "assistant" else "system"
        return {"role": role, "content": _text(message)}
    if isinstance(message.content, str):
        return {"role": "user", "content": message.content}
    parts: list[dict[str, str]] = []
    for index, part in enumerate(message.content):
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
            continue
        kind = "image" if isinstance(part, ImagePart) else "video"
        media[kind].append(read_url(url_of(part), f"{where}.content.{index}", fetch))
        parts.append({"type": kind})
    return {"role": "user", "content": parts}


def _text(message: Message) -> str:
    """The text of a message, a line for each of its parts."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def url_of(part: ImagePart | VideoPart) -> str:
    """The URL that a part names."""
    named = part.image_url if isinstance(part, ImagePart) else part.video_url
    return named.url if isinstance(named, Url) else named


def read_url(url: str, where: str, fetch: Callable[[str], bytes]) -> bytes:
    """What a URL names, an error of which names the field `where`."""
    if url[:5].lower() != "data:":
        try:
            return fetch(url)
        except APIError as error:
            raise APIError(error.status, f"{where}: {error.message}", where, error.code) from None
    start = DATA_URI.match(url)
    if start is None:
        raise APIError(400, f"{where}: a data URI must be data:TYPE;base64,DATA", where, "invalid_data_uri")
    try:
        data = base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise APIError(400, f"{where}: the data URI is not base64", where, "invalid_data_uri") from None
    if not data:
        raise APIError(400, f"{where}: the data URI is empty", where, "invalid_data_uri")
    return data
