"""JSON files of a checkpoint, whose values are checked as they are read. An error names file, key and value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ...graphs import CheckpointError


class Settings(dict[str, Any]):
    """A JSON object, and the file and keys that lead to it.

    `kept | changes` is again `Settings`. Every reader takes a key and the value where there is none; they raise a
    CheckpointError for a value of another kind.
    """

    def __init__(self, origin: str, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.origin = origin

    def __or__(self, changes: Mapping[str, Any]) -> Settings:
        return Settings(self.origin, {**self, **changes})

    def section(self, key: str) -> Settings:
        """The object under `key`; an empty one where there is none or null."""
        if self.get(key) is None:
            return Settings(f"{self.origin}: {key}")
        if not isinstance(self[key], dict):
            self.refuse(key, "an object")
        return Settings(f"{self.origin}: {key}", self[key])

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        return value if isinstance(value, bool) else self.refuse(key, "true or false")

    def integer(self, key: str, default: int) -> int:
        """An integer of 1 or more; `default` for null too."""
        value = default if self.get(key) is None else self[key]
        return value if type(value) is int and value > 0 else self.refuse(key, "an integer of 1 or more")

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.get(key, default)
        return float(value) if _is_number(value) else self.refuse(key, "a number")

    def channels(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Three numbers, one a colour; `default` for null too."""
        values = default if self.get(key) is None else self[key]
        if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_number, values)):
            self.refuse(key, "a list of three numbers")
        return tuple(map(float, values))

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raise a CheckpointError for the value of `key`."""
        raise CheckpointError(f"{self.origin}: {key} is {self.get(key)!r:.80}; give {allowed}")


def read(path: Path) -> Settings:
    """The JSON object in a file.

    Raises:
        CheckpointError: if the file holds none, or names Python code of its own.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        has_code = "auto_map" in _keys(values)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {values!r:.80}; it must hold a JSON object, {{...}}")
    if has_code:
        raise CheckpointError(
            f"{path} has an auto_map, which names Python code that comes with the checkpoint. An export never runs that"
            " code: it reads a checkpoint with the classes of the installed transformers. Give a checkpoint that these"
            " load without trust_remote_code"
        )
    return Settings(str(path), values)


def _keys(value: Any) -> Iterable[str]:
    """The keys of an object and of those in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys(item)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
