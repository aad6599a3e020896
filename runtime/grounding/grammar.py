"""Grammars of answers with boxes, and the filter that keeps an answer within one.

It counts the ids that are left, so that an answer that is cut can be read to its end as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import TypeAlias

import numpy as np
from tokenizers import Tokenizer

from ...graphs import InputError
from ..generation.incremental import Incremental
from ..generation.numerics import IMPOSSIBLE, UNLIKELY
from ..text.detokenize import BYTE

DONE = "done"


class Kind(IntEnum):
    """The kind of a token in a grammar. `OTHER` tokens are never allowed."""

    OTHER = 0
    TEXT = auto()
    SPACE = auto()
    SEPARATOR = auto()
    END = auto()
    LOCATION = auto()
    CODE = auto()
    OPEN_PHRASE = auto()
    CLOSE_PHRASE = auto()
    OPEN_BOXES = auto()
    CLOSE_BOXES = auto()


#: For each state, the kinds of tokens that are allowed and the state after each.
Table: TypeAlias = dict[str, dict[Kind, str]]


@dataclass(frozen=True)
class Grammar:
    """The answers that are allowed, over the ids of one vocabulary.

    Attributes:
        table: its states; the first is where an answer begins.
        final: the states in which an answer may be cut.
        continues: whether an answer goes on where its prompt ended, and not from the first state.
        kinds: (vocab,) of int8, the `Kind` of each id.
        locations: (locations,) of int64, the ids of bins or patches, in their order.
        inside: takes the locations of a box so far and returns (locations,) of bool: those that may come next.
    """

    table: Table
    final: frozenset[str]
    continues: bool
    kinds: np.ndarray
    locations: np.ndarray
    inside: Callable[[Sequence[int]], np.ndarray]

    def state(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[str, list[int]]:
        """The state after an answer so far, and the locations of the box that it stands in.

        A prompt may break the grammar; what comes after that is read from the first state.
        """
        ids = (*prompt, *answer) if self.continues else answer
        return functools.reduce(self.after, ids, (self._first, []))

    def after(self, before: tuple[str, list[int]], token_id: int) -> tuple[str, list[int]]:
        """What `state` returns, after one more id."""
        state, locations = before
        kind = Kind(self.kinds[token_id]) if token_id < len(self.kinds) else Kind.OTHER
        is_location = kind is Kind.LOCATION
        locations = [*locations, int(np.flatnonzero(self.locations == token_id)[0])] if is_location else []
        return self.table[state].get(kind, self._first), locations

    @property
    def _first(self) -> str:
        return next(iter(self.table))

    def least(self) -> dict[str, int]:
        """For each state, the least number of further tokens after which an answer with a box may end."""
        steps = dict.fromkeys(self.final, 0)
        while len(steps) < len(self.table):
            for state, ways in self.table.items():
                ends = [steps[after] for kind, after in ways.items() if after in steps and kind is not Kind.END]
                if ends and state not in steps:
                    steps[state] = 1 + min(ends)
        return steps


class Constraint:
    """A filter: only ids with which the answer stays within a grammar and comes to its end within `length` ids.

    Where other filters allow none of these ids, they are all equally likely.

    Raises:
        InputError: if `length` leaves no room for a box behind one of the prompts.
    """

    def __init__(self, grammar: Grammar, length: int, prompts: Iterable[Sequence[int]]) -> None:
        self._grammar, self._length, self._least = grammar, length, grammar.least()
        self._state = Incremental(grammar.state, grammar.after)
        least = max(self._least[grammar.state(prompt, ())[0]] for prompt in prompts)
        if least > length:
            raise InputError(
                f"an answer of {length} tokens has no room for a box; give max_new_tokens of at least {least},"
                " or leave constrain out"
            )

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], logits: np.ndarray) -> np.ndarray:
        allowed = self.allowed(prompt, answer)
        masked = np.where(allowed, logits, IMPOSSIBLE)
        return masked if masked.max() > IMPOSSIBLE else np.where(allowed, UNLIKELY, IMPOSSIBLE)

    def allowed(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """(vocab,) of bool: the ids that may come."""
        grammar = self._grammar
        state, locations = self._state(prompt, answer)
        left = self._length - len(answer) - 1
        kinds = np.zeros(len(Kind), bool)
        kinds[[kind for kind, after in grammar.table[state].items() if self._least[after] <= left]] = True
        allowed = kinds[grammar.kinds]
        if kinds[Kind.LOCATION]:
            allowed[grammar.locations] = grammar.inside(locations)
        return allowed


class Vocabulary:
    """The ids of a tokenizer below `size`."""

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: Sequence[int]) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._end_ids = [token_id for token_id in end_ids if token_id < size]

    def kinds(self, separator: str | None) -> np.ndarray:
        """(vocab,) of int8: which ids are text, white space or, white space around it aside, the separator.

        Text has no separator in it and nothing that might begin a tag. An added token is not text, nor is one that
        stands for no text. A byte does not separate: it might become part of a character.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        texts = self._tokenizer.decode_batch([[token_id] for token_id in range(self._size)], skip_special_tokens=False)
        kinds = np.zeros(self._size, np.int8)
        for token_id, text in enumerate(texts):
            token = self._tokenizer.id_to_token(token_id)
            if token is None or token_id in added or "<" in text:
                continue
            if separator is None or separator not in text:
                kinds[token_id] = Kind.TEXT if text.strip() else Kind.SPACE
            elif text.strip() == separator and not BYTE.fullmatch(token):
                kinds[token_id] = Kind.SEPARATOR
        kinds[self._end_ids] = Kind.END
        return kinds

    def known(self, tokens: Iterable[str]) -> list[int]:
        """The ids of those tokens that the vocabulary has."""
        ids = map(self._tokenizer.token_to_id, tokens)
        return [token_id for token_id in ids if token_id is not None and token_id < self._size]

    def all(self, tokens: Iterable[str]) -> np.ndarray:
        """(tokens,) of int64: the ids of tokens.

        Raises:
            InputError: for a token that the vocabulary has not.
        """
        tokens = list(tokens)
        if missing := [token for token in tokens if not self.known([token])]:
            raise InputError(f"this model has no token {missing[0]} to write boxes with; leave constrain out")
        return np.array(self.known(tokens))
