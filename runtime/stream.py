"""An answer as it comes: pieces of text that no later token changes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ..graphs import GenerationError
from .generation.steps import Chosen
from .results import Generation
from .text.detokenize import Reader
from .text.stable_text import StableText

T = TypeVar("T")


class Stream(Iterator[str]):
    """The pieces of one answer's text; together they are the text of `generation`.

    A piece ends where text may still change: within a character or a tag, before what a tokenizer may join, at what
    may become a stop string. Beam search knows its answer at the end, so its text is one piece.

    `close()`, leaving a `with` block and forgetting the stream all end the work and free its memory. One thread at a
    time may take pieces or close; another gets a GenerationError.
    """

    def __init__(self, tokens: Generator[Sequence[Chosen], None, list[Generation]], reader: Reader) -> None:
        self._tokens = tokens
        self._text = StableText(reader)
        self._returned = 0  # characters
        self._busy = threading.Lock()
        self._generation: Generation | None = None

    @property
    def generation(self) -> Generation:
        """The whole answer.

        Raises:
            GenerationError: if the stream has not come to its end.
        """
        if self._generation is None:
            raise GenerationError("the stream has not come to its end; take all of its pieces first")
        return self._generation

    def __next__(self) -> str:
        with self._alone():
            return self._next()

    def _next(self) -> str:
        while self._generation is None:
            try:
                piece = self._text.add([token.id for token in next(self._tokens)])
            except StopIteration as end:
                if end.value is None:  # closed before
                    break
                (self._generation,) = end.value
                piece = self._generation.text[self._returned :]
            self._returned += len(piece)
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """End the work here."""
        with self._alone():
            self._tokens.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise GenerationError("another thread takes a piece of this stream; let one thread alone use it")
        try:
            yield
        finally:
            self._busy.release()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fold(generator: Generator[object, None, T]) -> T:
    """Run a generator to its end; its return value."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value
