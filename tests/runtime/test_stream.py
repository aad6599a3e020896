"""A stream alone, over ids that a generator yields."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest
from onnx_vlm.runtime import Generation, GenerationError, Stream
from onnx_vlm.runtime.generation.steps import Chosen
from onnx_vlm.runtime.text.detokenize import Detokenizer, Reader
from tokenizers import Tokenizer, decoders, models

#: reads an id as one letter
LETTERS = Tokenizer(models.WordLevel({chr(number): number for number in range(128)}, unk_token=" "))
LETTERS.decoder = decoders.Fuse()


def test_two_threads_on_one_stream_are_told():
    started, proceed, pieces = threading.Event(), threading.Event(), []

    def tokens() -> Generator[list[Chosen], None, Any]:
        started.set()
        assert proceed.wait(60)
        yield [Chosen(0, 97)]
        return [Generation("ab", [97, 98], "stop", 1)]

    stream = Stream(tokens(), Reader(Detokenizer(LETTERS, False), False, ()))
    thread = threading.Thread(target=lambda: pieces.extend(stream))
    thread.start()
    assert started.wait(60)
    for take in (lambda: next(stream), stream.close):
        with pytest.raises(GenerationError, match="another thread takes a piece"):
            take()
    proceed.set()
    thread.join()
    assert pieces == ["a", "b"], "the first thread was not disturbed"
    assert stream.generation.text == "ab"
