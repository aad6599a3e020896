"""Prompts as the decoder takes them, whatever their images, lengths and tables."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_vlm.graphs.manifest import Embedding
from onnx_vlm.runtime import BundleError
from onnx_vlm.runtime.inference.token_embeddings import embed, load_table, merge, pad_right, uncut

HIDDEN, VOCAB, TOKENS = 3, 11, 2  # of an embedding; of the table; of a tile


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_image_embeddings_stand_in_their_places_and_words_between_them(data: st.DataObject):
    tiles = data.draw(st.lists(st.integers(0, 3), max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    table = random.normal(size=(VOCAB, HIDDEN)).astype(data.draw(st.sampled_from([np.float32, np.float16])))
    embeds = [random.normal(size=(some, TOKENS, HIDDEN)).astype(np.float32) for some in tiles]
    scale, beyond = data.draw(st.sampled_from([1.0, 1.7])), VOCAB + 5
    ids, places, expected = [], [], []
    for some in [*embeds, np.zeros((0, TOKENS, HIDDEN), np.float32)]:
        words = data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=4))
        expected += [table[word].astype(np.float32) * np.float32(scale) for word in words]
        expected += list(some.reshape(-1, HIDDEN))
        ids += [*words, *[beyond] * (len(some) * TOKENS)]
        places += [False] * len(words) + [True] * (len(some) * TOKENS)
    merged = merge(table, np.array(ids, np.int64), np.array(places, bool), embeds, Embedding(scale))
    assert merged.dtype == np.float32
    assert np.array_equal(merged, np.array(expected, np.float32).reshape(-1, HIDDEN))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=6), st.data())
def test_tokens_of_an_image_see_those_that_follow_and_no_part_cuts_them(runs: list[tuple[bool, int]], data):
    """Runs of placeholders and of words; two runs of placeholders side by side are one image."""
    recipe = Embedding(1.0, ahead=True)
    is_image = np.array([kind for kind, length in runs for _ in range(length)])
    table = np.ones((VOCAB, HIDDEN), np.float32)
    embeds = [np.full((1, is_image.sum(), HIDDEN), 2, np.float32)] if is_image.any() else []
    row = merge(table, np.zeros(len(is_image), np.int64), is_image, embeds, recipe)
    assert np.array_equal(row[:, :HIDDEN], np.where(is_image, 2, 1)[:, None] * np.ones(HIDDEN))
    assert embed(table, np.array([3]), recipe).tolist() == [[1.0] * HIDDEN + [0.0]]
    seen = [
        next((n for n, one in enumerate(is_image[place:]) if not one), len(is_image) - place)
        for place in range(len(row))
    ]
    assert row[:, -1].tolist() == [max(0, count - 1) for count in seen]

    whole = [
        place for place in range(1, len(row) + 1) if place == len(row) or not (is_image[place - 1] and is_image[place])
    ]
    end = data.draw(st.integers(1, len(row)))
    assert uncut(row, end) == max([place for place in whole if place <= end], default=0)
    start = data.draw(st.sampled_from([0, *whole]).filter(lambda place: place < end))
    expected = [place for place in whole if start < place <= end]
    assert uncut(row, end, start) == (expected[-1] if expected else min(place for place in whole if place > end))


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_rows_are_padded_behind(lengths: list[int]):
    rows = [np.full((length, HIDDEN), number + 1, np.float32) for number, length in enumerate(lengths)]
    padded = pad_right(rows)
    assert padded.shape == (len(rows), max(lengths), HIDDEN)
    for row, one in zip(padded, rows):
        assert np.array_equal(row[: len(one)], one)
        assert not row[len(one) :].any()


def saved(array: object, save=np.save) -> bytes:
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


GOOD = saved(np.zeros((VOCAB, HIDDEN), np.float32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"PK\x03\x04 no zip",
        saved(np.zeros((VOCAB, HIDDEN), np.float32), np.savez),
        saved(np.float32(1)),
        saved(np.zeros(HIDDEN, np.float32)),
        saved(np.zeros((0, HIDDEN), np.float32)),
        saved(np.zeros((VOCAB, HIDDEN), np.int64)),
        saved(np.zeros((VOCAB, HIDDEN + 1), np.float32)),
        saved(np.zeros((VOCAB - 1, HIDDEN), np.float32)),
        saved(np.array([[None]])),
        GOOD[:-4],
        GOOD.replace(b"(11, 3)", b"(-1, 3)"),
        GOOD.replace(b"(11, 3)", b"(9**9,)"),
        GOOD.replace(b"(11, 3), }         ", b"(11, 99999999999999)}"),
        GOOD[:8] + b"\xff\xff" + GOOD[10:],
    ],
)
def test_a_file_that_holds_no_table_is_refused_by_name(tmp_path: Path, data: bytes):
    path = tmp_path / "embed_tokens.npy"
    path.write_bytes(GOOD)
    assert load_table(path, HIDDEN, VOCAB).shape == (VOCAB, HIDDEN)
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"embed_tokens\.npy"):
        load_table(path, HIDDEN, VOCAB)


def test_ids_beyond_the_table_are_refused():
    with pytest.raises(BundleError, match="the tokenizer has the id 11, the embedding table 11 rows"):
        embed(np.zeros((VOCAB, HIDDEN), np.float32), np.array([0, VOCAB]), Embedding(1.0))
