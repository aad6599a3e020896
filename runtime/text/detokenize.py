"""Ids back to text. `stable_text` has the text of an answer that grows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from ..generation.stops import StopStrings

#: Replacements that transformers makes in the texts of tokenizers with clean_up_tokenization_spaces, in this order.
CLEANED = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
TAG = re.compile("<.*?>")


class Detokenizer:
    """Text of ids, special tokens left out.

    Attributes:
        cleans: whether spaces before punctuation and contractions are removed.
        joining: ids after which a character may be incomplete: those of bytes, and special ones, which are left out
            before bytes are joined.
    """

    def __init__(self, tokenizer: Tokenizer, clean_up_spaces: bool) -> None:
        self._tokenizer, self.cleans = tokenizer, clean_up_spaces
        special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        byte_ids = {tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
        self.joining = frozenset(special | byte_ids - {None})

    def decode(self, ids: Sequence[int]) -> str:
        """The text as the tokenizer decodes it."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text, cleaned if this tokenizer's texts are."""
        text = self.decode(ids)
        return cleaned(text) if self.cleans else text


def cleaned(text: str) -> str:
    """A text without the spaces before punctuation and contractions."""
    for spaced, clean in CLEANED.items():
        text = text.replace(spaced, clean)
    return text


def untagged(text: str) -> str:
    """A text without what stands in angle brackets."""
    return TAG.sub("", text)


class Reader:
    """Reads an answer: its text as a user is to see it.

    Args:
        detokenizer: returns the text.
        tagged: whether there may be tags in it, which are left out, and white space around it with them.
        stop: the text ends before the first of these, which are looked for in the text with its tags.
    """

    def __init__(self, detokenizer: Detokenizer, tagged: bool, stop: Sequence[str]) -> None:
        self.detokenizer, self.tagged = detokenizer, tagged
        self.stops = StopStrings(stop, detokenizer.text) if stop else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer that is complete."""
        text = self.detokenizer.text(ids)
        end = self.stops.find(text) if self.stops else None
        if end is None:
            end = len(text)
        if not self.tagged:
            return text[:end]
        end = next((tag.start() for tag in TAG.finditer(text) if tag.start() < end < tag.end()), end)
        return untagged(text[:end]).strip()
