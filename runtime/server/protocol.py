"""The bodies of requests: OpenAI's chat completions with fields of this server's own, and scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..options import FIELDS
from .errors import APIError

MOST_TOP_LOGPROBS = 20

#: Fields of OpenAI's that this server does not support, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "tool_calls": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
#: Options of an answer that a request may have by their own names.
PASSED = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "stop",
    "seed",
    "constrain",
)


class Strict(BaseModel):
    """A text is no number here, and a field that is not known is left alone unless it asks for what is not there."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            if name in UNSUPPORTED and value is not None and value not in UNSUPPORTED[name]:
                raise APIError(400, f"{name} is not supported by this server; leave it out", name, "unsupported_field")
        return data


class Url(Strict):
    """`url`: a data URI, or an https URL of an allowed domain."""

    url: str


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: Url | str


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: Url | str


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class JsonSchema(Strict):
    definition: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def constraint(self) -> dict[str, Any] | None:
        """The JSON schema that the answer obeys."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            raise APIError(400, "response_format is json_schema: give json_schema.schema", "response_format")
        return self.json_schema.definition


class StreamOptions(Strict):
    include_usage: bool | None = None


class Question(Strict):
    """What a request is about.

    `model` may be left out where the server has one. `bboxes` has for each `<phrase>` of the prompt null, a box or a
    list of boxes; a box is two patch indices, or xmin, ymin, xmax, ymax in 0..1.
    """

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    bboxes: list[Any] | None = None


class ScoreRequest(Question):
    """How likely each of `candidates` is as the answer."""

    candidates: Annotated[list[str], Field(min_length=1)]


class ChatRequest(Question):
    """A question, and how it is to be answered. A field that is left out or null is as the model's authors set it."""

    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    constrain: str | dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_names(cls, data: Any) -> Any:
        """An option of the Python functions that has another name here, or none, is not ignored in silence."""
        for name in {field.name for field in FIELDS} - cls.model_fields.keys():
            if isinstance(data, dict) and data.get(name) is not None:
                others = {
                    "max_new_tokens": "max_completion_tokens",
                    "num_return_sequences": "n",
                    "do_sample": "temperature, which draws unless it is 0",
                }
                remedy = f"give {others[name]}" if name in others else "leave it out"
                raise APIError(400, f"{name} is not taken over HTTP; {remedy}", name, "unsupported_field")
        return data

    def options(self) -> dict[str, Any]:
        """The options of `generate`; those that are left out are not in it."""
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise APIError(400, "max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
        asked = {name: getattr(self, name) for name in PASSED}
        asked |= {"max_new_tokens": limits.pop() if limits else None, "num_return_sequences": self.n}
        asked |= self._drawing() | self._logprobs() | self._constraint()
        if self.stream_options is not None and not self.stream:
            raise APIError(400, "stream_options is for streams; give stream: true too", "stream_options")
        return {name: value for name, value in asked.items() if value is not None and value != []}

    def _drawing(self) -> dict[str, Any]:
        """How tokens are drawn: greedily at temperature 0, as drawing needs where it is asked for."""
        several = (self.n or 1) > 1 and (self.num_beams or 1) == 1
        if self.temperature == 0:
            if several:
                raise APIError(400, f"n is {self.n} and temperature 0: the answers would be equal; change one", "n")
            return {"do_sample": False}
        draws = several or self.temperature is not None or self.top_p not in (None, 1) or self.top_k or self.min_p
        return {"do_sample": True if draws else None, "temperature": self.temperature, "top_p": self.top_p}

    def _logprobs(self) -> dict[str, Any]:
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        return {"top_logprobs": (self.top_logprobs or 0) if self.logprobs else None}

    def _constraint(self) -> dict[str, Any]:
        schema = self.response_format.constraint() if self.response_format else None
        if schema is not None and self.constrain is not None:
            raise APIError(400, "response_format and constrain both constrain the answer; give one", "constrain")
        return {} if schema is None else {"constrain": schema}
