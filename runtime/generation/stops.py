"""Stop conditions: each one reason for which an answer ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

#: takes the ids of an answer so far; True if the last of them ended it
Stop: TypeAlias = Callable[[Sequence[int]], bool]


class EndTokens:
    """The answer ends with one of some ids."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = frozenset(ids)

    def __call__(self, answer: Sequence[int]) -> bool:
        return answer[-1] in self._ids


SLACK = 16  #: characters, more than a token changes of the text before it
UNDECODED = "\ufffd"  #: the character for bytes that are no character, or not yet


class StopStrings:
    """One of some texts is in the answer's text, perhaps over several tokens.

    Args:
        strings: not empty, none of them the empty text.
        text: returns the text of an answer's ids.
    """

    def __init__(self, strings: Sequence[str], text: Callable[[Sequence[int]], str]) -> None:
        self.strings = tuple(strings)
        self._text = text

    def __call__(self, answer: Sequence[int]) -> bool:
        """Whether the last id of an answer, which had no stop string in it before, ended it.

        Only the last ids are decoded if they are enough: as many as a stop string takes before the last one. More
        are decoded if these begin within a character.
        """
        size, needed = 16, max(map(len, self.strings)) + SLACK
        while size < len(answer):
            end = self._text(answer[-size:])
            if UNDECODED not in end and len(self._text(answer[-size:-1])) >= needed:
                if self.find(end) is None:
                    return False
                break
            size *= 2
        return self.find(self._text(answer)) is not None

    def find(self, text: str) -> int | None:
        """Where the first of the stop strings begins in a text; None if none is in it."""
        return min((start for string in self.strings if (start := text.find(string)) >= 0), default=None)

    def undecided(self, text: str) -> int:
        """How long the end of a text is that may yet become the start of a stop string."""
        longest = max(map(len, self.strings)) - 1
        ends = (text[len(text) - size :] for size in range(min(longest, len(text)), 0, -1))
        return next((len(end) for end in ends if any(string.startswith(end) for string in self.strings)), 0)


class AnyOf:
    """The answer ends for one of several reasons."""

    def __init__(self, *stops: Stop) -> None:
        self._stops = stops

    def __call__(self, answer: Sequence[int]) -> bool:
        return any(stop(answer) for stop in self._stops)
