"""Conversations: chat messages and the images in them, written out by a bundle's chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import jinja2
import numpy as np

from ...graphs import BundleError, InputError
from .sandbox import Sandbox, limited_time

Message: TypeAlias = Mapping[str, Any]

#: Names under which messages carry what an assistant thought; templates read the first.
REASONING = ("reasoning_content", "thinking", "reasoning")
PART_TYPES = ("text", "image", "video")


class Template:
    """A chat template, rendered as transformers renders it.

    Args:
        source: Jinja source.
        variables: what it may use besides `messages`, such as `bos_token`.

    Raises:
        BundleError: if `source` is no Jinja template.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = Sandbox()
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            with limited_time():
                self._template = environment.from_string(source)
        except (Exception, RecursionError) as error:
            raise BundleError(f"the chat template is broken: {_error_text(error)}; export the bundle again") from None
        self._variables = dict(variables)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant is to answer.

        Raises:
            InputError: if the template fails on it, takes too long or writes nothing.
        """
        values = {
            **self._variables,
            "messages": [_with_reasoning(message) for message in _plain(messages)],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            with limited_time():
                text = self._template.render(values)
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(f"the chat template cannot write this conversation: {_error_text(error)}") from None
        if not text:
            raise InputError("the chat template writes nothing for this conversation")
        return text


def _error_text(error: Exception) -> str:
    """The message of an error; with its type if it is Python's own."""
    return str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    """A value in JSON's types alone: a template must not reach the methods of a caller's objects."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning, if it has one, stands under the names that templates read."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def conversation(
    prompt: str | Sequence[Message], images: int, videos: int, system_parts: bool = False
) -> list[dict[str, Any]]:
    """The messages of a prompt, copied; a text becomes one user turn.

    Messages name images and videos in their content, `{"type": "image"}`, `{"type": "video"}`; where none does, those
    given are put before the text of the first user turn.

    Args:
        system_parts: whether the template takes the content of a system's message as a list of parts, not as a text.

    Raises:
        InputError: if `prompt` is neither text nor messages, if a message lacks role or content or has a part of an
            unknown type, or if other numbers of images or videos are given than named.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, (list, tuple)):
        raise InputError(f"a prompt is a text or a list of messages, not {prompt!r:.80}")
    messages = [_message(message, system_parts) for message in prompt]
    counts = {"image": images, "video": videos}
    named = {kind: sum(part.get("type") == kind for part in _parts(messages)) for kind in counts}
    first = next((message for message in messages if message["role"] == "user"), None)
    if not any(named.values()) and first is not None:
        first["content"] = [{"type": kind} for kind in counts for _ in range(counts[kind])] + first["content"]
    elif named != counts:
        raise InputError(
            f"the conversation names {named['image']} images and {named['video']} videos,"
            f" {images} and {videos} are given"
        )
    return messages


def _message(message: Message, system_parts: bool) -> dict[str, Any]:
    """A copy whose content is a list of parts, as templates of vision-language models expect; a system's text stays one
    unless `system_parts`."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InputError(f"a chat message has a role and a content, not {message!r:.80}")
    content = message["content"]
    if isinstance(content, str):
        as_text = message["role"] == "system" and not system_parts
        content = content if as_text else [{"type": "text", "text": content}]
    elif not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise InputError(f"the content of a chat message is a text or a list of parts, not {content!r:.80}")
    if not isinstance(content, str):
        for part in content:
            if part.get("type") not in PART_TYPES:
                raise InputError(
                    f"a part of a message has the type {part.get('type')!r:.80}; known are {', '.join(PART_TYPES)}."
                    ' An image is {"type": "image"} there, and the image itself goes to `images`'
                )
    return {**message, "content": content if isinstance(content, str) else list(content)}


def _parts(messages: Iterable[dict[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (part for message in messages if not isinstance(message["content"], str) for part in message["content"])
