"""The text of a growing answer as far as no later id can change it, in time that is linear in its length."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..generation.stops import UNDECODED
from .detokenize import Detokenizer, Reader, cleaned, untagged

#: A space that is part of no text that `cleaned` replaces: what is before it and after it is cleaned on its own.
APART = re.compile(r"(?<![' ]) (?=[^ .?!,'n])")
OPEN_TAG = re.compile(r"<[^>\n]*\Z")
CONTEXT = 16  #: ids that are decoded again with those that follow them: a decoder may treat the first id in its own way


class StableText:
    """Takes the ids of one answer as they come and returns the pieces of its stable text.

    The pieces together are the same, however the ids are cut into calls of `add`. A piece ends within no character,
    and before text that `cleaned` may change, an open tag, what may become a stop string, and, where tags are left
    out, white space.
    """

    def __init__(self, reader: Reader) -> None:
        self._decoded = _Decoded(reader.detokenizer)
        self._cleaned = _Cleaned() if reader.detokenizer.cleans else None
        self._tagged = reader.tagged
        self._stops = reader.stops
        self._tail = ""  # text that is not returned yet
        self._space = ""  # white space at the end of the text without tags
        self._begun = self._ended = False

    def add(self, ids: Sequence[int]) -> str:
        """The stable text that `ids` add."""
        text = self._decoded.add(ids)
        self._tail += self._cleaned.add(text) if self._cleaned else text
        closed = self._tail[: self._end()]
        if self._tagged:
            closed = OPEN_TAG.sub("", closed)
        self._tail = self._tail[len(closed) :]
        return self._stripped(untagged(closed)) if self._tagged else closed

    def _end(self) -> int:
        """The length of the part of the tail that is before a stop string and what may become one."""
        if self._ended:
            return 0
        if self._stops is None:
            return len(self._tail)
        stop = self._stops.find(self._tail)
        self._ended = stop is not None
        return len(self._tail) - self._stops.undecided(self._tail) if stop is None else stop

    def _stripped(self, text: str) -> str:
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown


class _Decoded:
    """Decodes ids as they come, from a little before the first that is not decoded yet."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._ids: list[int] = []  # the last ids
        self._end = 0  # how many of them are decoded
        self._text = ""  # the text of these
        self._limit = 4 * CONTEXT  # more decoded ids than these are to be shortened

    def add(self, ids: Sequence[int]) -> str:
        """The text that `ids` add; a character that may be incomplete waits."""
        before = len(self._ids)
        self._ids += ids
        # A run of bytes is decoded as one, and not at all while it ends within a character.
        plain = (index for index in range(len(self._ids), before, -1) if self._is_plain(index - 1))
        end = next(plain, self._end)
        if end == self._end:
            return ""
        text = self._detokenizer.decode(self._ids[:end])
        stable = text.rstrip(UNDECODED)
        piece = stable[len(self._text) :]
        self._end, self._text = end, stable
        if end > self._limit and stable == text:
            self._shorten()
        return piece

    def _is_plain(self, index: int) -> bool:
        return self._ids[index] not in self._detokenizer.joining

    def _shorten(self) -> None:
        """Forget the first ids if the text of the others is the end of the text, and will be so when more ids come.

        It will be if the others begin between two characters, and their text with something else than the white space
        that a decoder may take from its beginning. Otherwise there is another try with twice as many ids.
        """
        self._limit = 2 * self._end
        start = self._end - CONTEXT
        while start and not (self._is_plain(start - 1) or self._is_plain(start)):
            start -= 1
        head = self._detokenizer.decode(self._ids[:start])
        text = self._detokenizer.decode(self._ids[start : self._end])
        if start and text.strip() and self._text.endswith(text) and not head.endswith(UNDECODED):
            del self._ids[:start]
            self._end -= start
            self._text = text
            self._limit = max(4 * CONTEXT, 2 * self._end)


class _Cleaned:
    """Cleans text as it comes."""

    def __init__(self) -> None:
        self._text = ""  # from the last space that stands apart
        self._size = 0  # the length of what is returned of its clean text

    def add(self, text: str) -> str:
        """The clean text that `text` adds; what may be cleaned in another way when more text comes waits."""
        self._text += text
        apart = max((match.start() for match in APART.finditer(self._text)), default=-1)
        end = self._text.find(" ", apart + 1)
        clean = cleaned(self._text if end < 0 else self._text[:end])
        piece = clean[self._size :]
        self._size = len(clean)
        if apart > 0:
            self._size -= len(cleaned(self._text[:apart]))
            self._text = self._text[apart:]
        return piece
