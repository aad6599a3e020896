"""What comes of a submitted request: pieces of its answers, and at last the whole."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ...graphs import GenerationError
from ..generation.logprobs import TokenLogprob
from ..generation.steps import Chosen
from ..grounding.types import Grounded
from ..results import Generation, Score
from ..text.detokenize import Reader
from ..text.stable_text import StableText


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer.

    Attributes:
        index: which of the request's answers it belongs to.
        text: text that no later token changes; it may be empty. The pieces of an answer together are its text.
        token_ids: the new ids.
        logprobs: of each of these ids, if `top_logprobs` asks for them.
        grounded: all boxes, masks and entities of the answer so far, as in `Generation`, if this step changed them. The
            label of the last one may go on.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    grounded: Grounded | None = None


#: What a request ends with.
Result: TypeAlias = "Generation | list[Score]"
#: Told of each piece, and at last of the result or the error. It is called in a thread of the scheduler.
OnEvent: TypeAlias = Callable[["Piece | Result | Exception"], None]


class AnswerStream(Iterator[Piece]):
    """The pieces of a request's answers, as they come. Use `Scheduler.submit`.

    Args:
        on_event: is told of each piece and of the end; None keeps the pieces for whoever iterates.
    """

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._on_event = on_event
        self._ended = threading.Event()
        self._result: Result | Exception | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """End the request here: its rows are free within a step. It may be called from any thread, at any time."""
        self.cancelled = True

    def __next__(self) -> Piece:
        piece = None if self._ended.is_set() and self._pieces.empty() else self._pieces.get()
        if piece is not None:
            return piece
        self.result()  # raises what the request failed with
        raise StopIteration

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end; the answer, or the scores.

        Raises:
            InputError, GenerationError: what the request failed with; a GenerationError if it was cancelled.
            TimeoutError: after `timeout` seconds.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the request has not come to its end in {timeout} seconds")
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result

    @property
    def generation(self) -> Generation:
        """The whole answer.

        Raises:
            GenerationError: if the stream has not come to its end.
        """
        if not self._ended.is_set():
            raise GenerationError("the stream has not come to its end; take all of its pieces first, or call result()")
        result = self.result()
        assert isinstance(result, Generation)
        return result

    def put(self, piece: Piece) -> None:
        """Tell of a piece."""
        if self._on_event is None:
            self._pieces.put(piece)
        else:
            self._tell(piece)

    def end(self, result: Result | Exception) -> None:
        """Tell of the end. Only the first call counts."""
        if self._ended.is_set():
            return
        self._result = result
        self._ended.set()
        if self._on_event is None:
            self._pieces.put(None)
        else:
            self._tell(result)

    def _tell(self, event: Piece | Result | Exception) -> None:
        assert self._on_event is not None
        try:
            self._on_event(event)
        except Exception:  # of one listener: other requests go on, and nobody hears this one
            self.cancelled = True


class Texts:
    """Turns what each step chooses into pieces.

    Args:
        reader: reads the answers' text.
        answers: how many there are.
        grounded: reads the ids of an answer so far.
    """

    def __init__(self, reader: Reader, answers: int, grounded: Callable[[list[int]], Grounded]) -> None:
        self._texts = [StableText(reader) for _ in range(answers)]
        self._lengths = [0] * answers  # characters that are out
        self._ids: list[list[int]] = [[] for _ in range(answers)]
        self._read = grounded
        self._grounded = [Grounded() for _ in range(answers)]

    def pieces(self, chosen: Sequence[Chosen]) -> Iterator[Piece]:
        """A piece for each answer that has new ids."""
        for index in dict.fromkeys(token.index for token in chosen):
            tokens = [token for token in chosen if token.index == index]
            ids = [token.id for token in tokens]
            text = self._texts[index].add(ids)
            self._lengths[index] += len(text)
            noted = [token.logprob for token in tokens if token.logprob is not None]
            yield Piece(index, text, ids, noted or None, self._changed(index, ids))

    def _changed(self, index: int, ids: list[int]) -> Grounded | None:
        """What an answer says of regions, if it says something new; a caption that goes on is not."""
        self._ids[index] += ids
        before, now = self._grounded[index], self._read(self._ids[index])
        if (before.boxes, before.masks) == (now.boxes, now.masks):
            return None
        self._grounded[index] = now
        return now

    def rest(self, generation: Generation) -> Iterator[Piece]:
        """A piece for each answer whose text is longer than its pieces."""
        for index, answer in enumerate((generation, *generation.alternatives)):
            if rest := answer.text[self._lengths[index] :]:
                yield Piece(index, rest, [])
