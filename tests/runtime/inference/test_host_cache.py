"""The KV cache against lists: whatever is fed, kept and reordered, each row holds its own tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_vlm.graphs import contract
from onnx_vlm.runtime.inference.host_cache import Cache

SPEC = contract.decoder(layers=1, kv_heads=2, head_dim=3, hidden=4, vocab=5)
ROWS, CAPACITY = 5, 24


class Counting(np.ndarray):
    """A buffer that counts the tokens written into it."""

    written = 0

    def __setitem__(self, place, values) -> None:
        Counting.written += values.size // 6  # of 2 heads of 3 numbers
        super().__setitem__(place, values)


class Graph:
    """Writes a number of its own for every token into the cache, as the decoder graph writes keys and values."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.number = cache, 0
        self.rows: list[list[int]] = [[] for _ in cache.lengths]

    def feed(self, lengths: list[int]) -> None:
        self.cache.extend(np.array(lengths))
        for place, (row, length) in enumerate(zip(self.rows, lengths)):
            for _ in range(length):
                self.number += 1
                for buffer in self.cache._buffers.values():
                    np.asarray(buffer)[place, :, len(row)] = self.number
                row.append(self.number)

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(np.array(rows))
        self.rows = [list(self.rows[row]) for row in rows]

    def cut(self, length: int, rows: int, capacity: int) -> None:
        self.cache = self.cache.truncate(length, rows, capacity)
        self.rows = [self.rows[0][:length]]

    def check(self) -> None:
        assert self.cache.lengths.tolist() == [len(row) for row in self.rows]
        for buffer in self.cache._buffers.values():
            for held, row in zip(buffer, self.rows):
                assert held[:, : len(row)].tolist() == [[[token] * 3 for token in row]] * 2


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_rows_hold_their_tokens_whatever_is_kept(data: st.DataObject):
    batch = data.draw(st.integers(1, 3))
    graph = Graph(Cache(SPEC, batch, ROWS, CAPACITY))
    graph.feed(data.draw(st.lists(st.integers(1, 8), min_size=batch, max_size=batch)))
    for _ in range(data.draw(st.integers(1, 6))):
        kept = st.lists(st.integers(0, len(graph.rows) - 1), min_size=1, max_size=ROWS)
        graph.keep(data.draw(kept))
        graph.check()
        graph.feed([1] * len(graph.rows))
        graph.check()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_row_goes_on_where_it_was_cut(data: st.DataObject):
    """In the same buffers or in larger ones, whatever other rows held before."""
    graph = Graph(Cache(SPEC, 1, data.draw(st.integers(1, ROWS)), 12))
    for _ in range(3):
        graph.feed([data.draw(st.integers(1, 3))])
        rows = data.draw(st.integers(1, len(graph.cache._written)))
        graph.keep(data.draw(st.lists(st.just(0), min_size=rows, max_size=rows)))
        graph.feed([1] * rows)
        graph.keep(data.draw(st.permutations(range(rows))))
        length = data.draw(st.integers(1, len(graph.rows[0])))
        graph.cut(length, data.draw(st.integers(1, ROWS)), length + 4 + data.draw(st.integers(0, 8)))
        graph.check()


def test_reordering_moves_only_the_tokens_since_rows_parted():
    """Beams of two prompts of different lengths: the prompts are copied once a beam, then only what differs."""
    graph = Graph(Cache(SPEC, 2, 4, CAPACITY))
    graph.cache._buffers = {name: buffer.view(Counting) for name, buffer in graph.cache._buffers.items()}
    graph.feed([3, 15])
    moved = []
    for rows in ([0, 0, 1, 1], [0, 0, 3, 2], [0, 1, 2, 3], [1, 0, 2, 2]):
        Counting.written = 0
        graph.keep(rows)
        graph.check()
        moved.append(Counting.written // 2)  # keys and values
        graph.feed([1] * 4)
    assert moved == [3 + 15 + 15, 1 + 1 + 1, 0, 2 + 2 + 3]
