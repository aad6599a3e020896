"""Conversations: chat messages and the pictures in them, written out by a bundle's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...graphs import BundleError, InputError

Message: TypeAlias = Mapping[str, Any]


class Template:
    """A chat template as transformers renders it.

    Args:
        source: Jinja source.
        variables: what it may use besides `messages`, such as `bos_token`.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError(f"the chat template is broken: {error}; export the bundle again") from None
        self._variables = dict(variables)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant is to answer."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._variables)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise InputError(f"the chat template cannot write this conversation: {error}") from None


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def conversation(prompt: str | Sequence[Message], images: int, videos: int) -> list[dict[str, Any]]:
    """The messages of a prompt: those given, or one user turn with its pictures first.

    Messages name pictures and videos in their content, `{"type": "image"}`, `{"type": "video"}`; where none does, those
    given are put before the text of the first user turn.

    Raises:
        InputError: if a message has no role or content, or other numbers of pictures or videos are given than named.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = [_message(message) for message in prompt]
    given = {"image": images, "video": videos}
    named = {kind: sum(part.get("type") == kind for part in _parts(messages)) for kind in given}
    first = next((message for message in messages if message["role"] == "user"), None)
    if not any(named.values()) and first is not None:
        first["content"] = [{"type": kind} for kind in given for _ in range(given[kind])] + first["content"]
    elif named != given:
        raise InputError(
            f"the conversation names {named['image']} pictures and {named['video']} videos,"
            f" {images} and {videos} are given"
        )
    return messages


def _message(message: Message) -> dict[str, Any]:
    """A copy whose content is a list of parts, as templates of vision-language models expect; a system's stays."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InputError(f"a chat message has a role and a content, not {message!r:.80}")
    content = message["content"]
    if isinstance(content, str):
        content = content if message["role"] == "system" else [{"type": "text", "text": content}]
    elif not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise InputError(f"the content of a chat message is a text or a list of parts, not {content!r:.80}")
    return {**message, "content": content if isinstance(content, str) else list(content)}


def _parts(messages: Iterable[dict[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (part for message in messages if not isinstance(message["content"], str) for part in message["content"])
