"""What a row asks: from the cells of an input to a request."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import numpy as np

from ...graphs import InputError
from ..images.reading import URL
from ..inputs import Request, listed, requests
from ..options import FIELDS, Options
from .sources import Cells

OPTIONS = {field.name: field for field in FIELDS}
MEDIA = ("image", "images", "video")
#: What a column may be; by its name, unless `--column` says otherwise.
ROLES = ("id", "prompt", *MEDIA, "bboxes", "candidates", *OPTIONS)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        id: its name in the results.
        index: where it stands in the input.
        cells: what was read.
        digest: of all that it asks, so that a changed row is told from what it was; 0 if it cannot be read.
    """

    id: str
    index: int
    cells: Cells
    digest: int


@dataclass(frozen=True)
class Question:
    """What a row asks: the answer to a request, or the scores of candidates."""

    request: Request
    options: Options
    candidates: Sequence[str]


@dataclass(frozen=True)
class Reader:
    """Reads rows.

    Attributes:
        base: the folder that relative paths start from.
        prompt: of rows that have none.
        candidates: of rows that have none.
        columns: by role, the name of its column where that is another.
        fetch: returns the bytes that a URL names; None refuses URLs.
        asks: whether a row must have a prompt. If not, one without has the empty text.
    """

    base: Path
    prompt: str | None = None
    candidates: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    fetch: Callable[[str], bytes] | None = None
    asks: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(self.columns.keys() - set(ROLES)):
            raise InputError(f"there is no role {unknown[0]!r} for a column; the roles are {', '.join(ROLES)}")

    def column(self, role: str) -> str:
        """The name of a role's column."""
        return self.columns.get(role, role)

    def rows(self, cells: Iterable[Cells]) -> Iterator[Row]:
        """The rows of an input."""
        for index, row in enumerate(cells):
            yield Row(self.id(row, index), index, row, self._digest(row))

    def id(self, cells: Cells, index: int) -> str:
        """The id of a row: its cell, or else its index."""
        cell = None if isinstance(cells, InputError) else cells.get(self.column("id"))
        return str(index) if cell is None else plain_text(str(cell))

    def question(self, row: Row) -> Question:
        """What a row asks, its files not read yet.

        Raises:
            InputError: if it cannot be used.
        """
        if isinstance(row.cells, InputError):
            raise row.cells
        cells = {role: _present(row.cells.get(self.column(role))) for role in ROLES}
        prompt = self.prompt if cells["prompt"] is None else cells["prompt"]
        if prompt is None and not self.asks:
            prompt = ""
        if prompt is None:
            raise InputError(f"the row has no prompt (column {self.column('prompt')!r}); give it one, or --prompt")
        if isinstance(prompt, str) and plain_text(prompt) != prompt:
            raise InputError(f"the prompt {prompt!a:.80} is not UTF-8; give text in UTF-8")
        if isinstance(prompt, list) and not all(isinstance(message, Mapping) for message in prompt):
            raise InputError(f"a prompt is a text or a list of chat messages, not {prompt!r:.80}")
        images = [*listed(cells["image"]), *listed(_from_text(cells["images"]))]
        (request,) = requests(prompt, images, listed(cells["video"]), _from_text(cells["bboxes"]))
        request = dataclasses.replace(
            request,
            images=[self._medium(image) for image in request.images],
            videos=[self._medium(video) for video in request.videos],
        )
        options = {name: _option(name, cells[name]) for name in OPTIONS if cells[name] is not None}
        candidates = cells["candidates"] if cells["candidates"] is not None else self.candidates
        return Question(request, cast("Options", options), cast("Sequence[str]", _from_text(candidates)))

    def names(self, row: Row) -> list[str]:
        """The files that a row names, as errors name them."""
        if isinstance(row.cells, InputError):
            return []
        values = [value for role in MEDIA for value in listed(row.cells.get(self.column(role)))]
        texts = [value for value in values if isinstance(value, str) and value]
        return [name for text in texts for name in (str(self.base / text), text)]

    def _medium(self, value: Any) -> Any:
        """An image or a video as `VLM.generate` takes it."""
        if isinstance(value, Mapping):  # as `datasets` stores images
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if not isinstance(value, str) or not value:
            return value
        if value[:5].lower() == "data:":
            return _from_data_uri(value)
        if URL.match(value):
            if self.fetch is None:
                raise InputError(
                    "a row has a URL, and URLs are not read; --allow-media-domain names hosts that may be asked"
                )
            return self.fetch(value)
        return self.base / value

    def _digest(self, cells: Cells) -> int:
        if isinstance(cells, InputError):
            return 0
        asked = [[role, cells.get(self.column(role))] for role in ROLES[1:]]
        return int.from_bytes(hashlib.blake2b(json.dumps(asked, default=_shown).encode(), digest_size=8).digest()) or 1


def plain_text(text: str) -> str:
    """A text that is UTF-8: what is not stands there as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _present(value: Any) -> Any:
    """A cell; None for one that is missing, as pandas writes it too, and a list for an array of objects."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _from_text(value: Any) -> Any:
    """A list that a text has in it as JSON, as in a CSV; any other text is one entry."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, list) else [value]


def _option(name: str, value: Any) -> Any:
    """The value of an option, out of a text where a cell is one, or a float where a column has gaps."""
    if isinstance(value, float) and OPTIONS[name].type is int and value.is_integer():
        return int(value)
    if not isinstance(value, str) or OPTIONS[name].type is str:
        return value
    try:
        return json.loads(value.lower() if OPTIONS[name].type is bool else value)
    except (ValueError, RecursionError):
        return value  # such as "never", or a stop string


def _from_data_uri(uri: str) -> bytes:
    """The bytes in a data URI (RFC 2397)."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise InputError(f"the data URI {uri:.40} has no comma; it is data:TYPE;base64,DATA")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the data URI {uri:.40} is not base64: {error}") from None


def _shown(value: Any) -> str:
    """What stands for a value that JSON has not."""
    if isinstance(value, (bytes, np.ndarray)):
        return hashlib.blake2b(bytes(value), digest_size=16).hexdigest()
    return str(value)
