"""Ids back to text: the whole text of an answer, and as much of it as no later id can change."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from ..generation.stops import UNDECODED, StopStrings

#: What transformers makes of spaces in the texts of tokenizers that ask for it, in this order.
CLEANED = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve",
    " 're": "'re",
}  # fmt: skip
#: A space that is part of no text in CLEANED, whatever comes later: before it and after it all is cleaned on its own.
APART = re.compile(r"(?<![' ]) (?=[^ .?!,'n])")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
TAG = re.compile("<.*?>")
OPEN_TAG = re.compile(r"<[^>\n]*\Z")


class Detokenizer:
    """Text of ids, special tokens left out."""

    def __init__(self, tokenizer: Tokenizer, clean_up_spaces: bool) -> None:
        self._tokenizer, self._clean = tokenizer, clean_up_spaces
        self._silent = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def text(self, ids: Sequence[int]) -> str:
        """All of the text."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return cleaned(text) if self._clean else text

    def stable_prefix(self, ids: Sequence[int]) -> str:
        """The start of the text that stays the same, whatever ids follow."""
        end = len(ids)
        # A run of bytes is decoded as one, and not at all while it breaks off within a character.
        while end and (ids[end - 1] in self._silent or self._is_byte(ids[end - 1])):
            end -= 1
        text = self._tokenizer.decode(list(ids[:end]), skip_special_tokens=True).rstrip(UNDECODED)
        return cleaned(text[: _settled(text)]) if self._clean else text

    def _is_byte(self, number: int) -> bool:
        return BYTE.fullmatch(self._tokenizer.id_to_token(number) or "") is not None


def cleaned(text: str) -> str:
    """A text without the spaces before punctuation and contractions."""
    for spaced, clean in CLEANED.items():
        text = text.replace(spaced, clean)
    return text


def _settled(text: str) -> int:
    """The length of the start of a text that is cleaned alike, whatever follows."""
    apart = max((match.start() for match in APART.finditer(text)), default=-1)
    undecided = text.find(" ", apart + 1)
    return undecided if undecided >= 0 else len(text)


class Reader:
    """Reads an answer: its text as a user is to see it, whole or as far as it is settled.

    Args:
        detokenizer: returns the text.
        tagged: whether there may be tags in it, which are left out, and white space around it with them.
        stop: the text ends before the first of these, which are looked for in the text with its tags.
    """

    def __init__(self, detokenizer: Detokenizer, tagged: bool, stop: Sequence[str]) -> None:
        self._tokens, self._tagged = detokenizer, tagged
        self.stops = StopStrings(stop, detokenizer.text) if stop else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer that goes no further."""
        return self._shown(self._tokens.text(ids), settled=False)

    def stable_prefix(self, ids: Sequence[int]) -> str:
        """The start of the text of every answer that starts with `ids`."""
        return self._shown(self._tokens.stable_prefix(ids), settled=True)

    def _shown(self, text: str, settled: bool) -> str:
        end = self.stops.find(text) if self.stops else None
        if end is None:
            end = len(text) - (self.stops.undecided(text) if self.stops and settled else 0)
        if not self._tagged:
            return text[:end]
        end = next((tag.start() for tag in TAG.finditer(text) if tag.start() < end < tag.end()), end)
        text = OPEN_TAG.sub("", text[:end]) if settled else text[:end]
        return untagged(text).strip()


def untagged(text: str) -> str:
    """A text without what stands in angle brackets."""
    return TAG.sub("", text)
