"""Texts that grow token by token: nothing settled changes, nothing of a stop string is shown."""

from __future__ import annotations

import pytest
from helpers import CHECKPOINTS
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_vlm.runtime.generation.stops import StopStrings
from onnx_vlm.runtime.text.detokenize import Detokenizer, Reader, cleaned
from onnx_vlm.runtime.text.stable_text import StableText
from tokenizers import Tokenizer, decoders, models


def words(*texts: str) -> Tokenizer:
    """A tokenizer that puts its tokens together as they are."""
    tokenizer = Tokenizer(models.WordLevel({text: number for number, text in enumerate(texts)}, unk_token=texts[0]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def checkpoint(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json"))


BYTES = words("a", *(f"<0x{byte:02X}>" for byte in range(256)), "é")
BYTES.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
SPACED = words(*",.?!'nts vermd", " '", " n", "'t", " n't", " ' ", "  ", " cat", "it", " .")
TAGGED = words("<", ">", "</", "\n", "p", "cat ", " ", "<p>", "a<b", "<a> b")
#: tokenizers whose later tokens may change what was decoded before: by bytes, by spaces, by tags
CASES = {
    "byte fallback": (BYTES, False, False),
    "bytes": (checkpoint("perception_lm"), False, False),
    "locations": (checkpoint("paligemma2"), False, False),
    "words": (checkpoint("kosmos2"), True, True),
    "spaces": (SPACED, True, False),
    "tags": (TAGGED, False, True),
    "spaces and tags": (TAGGED, True, True),
}


def reader(name: str, *stop: str) -> Reader:
    tokenizer, clean, tagged = CASES[name]
    return Reader(Detokenizer(tokenizer, clean), tagged, stop)


def pieces(read: Reader, ids: list[int]) -> tuple[list[str], str]:
    """The stable texts of an answer until a stop string ends it, and the text of the answer so ended."""
    stable, texts = StableText(read), [""]
    for end in range(1, len(ids) + 1):
        texts.append(texts[-1] + stable.add(ids[end - 1 : end]))
        if read.stops and read.stops(ids[:end]):
            return texts, read.text(ids[:end])
    return texts, read.text(ids)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_settled_text_stays(name: str, data: st.DataObject):
    size = CASES[name][0].get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=12))
    given_, text = pieces(reader(name), ids)
    assert text.startswith(given_[-1])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_nothing_of_a_stop_string_is_shown(name: str, data: st.DataObject):
    size = CASES[name][0].get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=12))
    tokenizer, clean, tagged = CASES[name]
    whole = Detokenizer(tokenizer, clean).text(ids)
    start = data.draw(st.integers(0, max(0, len(whole) - 1)))
    stop = whole[start : start + data.draw(st.integers(1, 4))] or "a"
    read = reader(name, stop)
    given_, text = pieces(read, ids)
    assert text.startswith(given_[-1])
    if stop in whole:
        assert any(read.stops(ids[:end]) for end in range(1, len(ids) + 1)), "it is looked for with tags and all"
    if not tagged:
        assert stop not in text


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", CASES)
def test_pieces_are_the_stable_text_of_all_ids_at_once(name: str, data: st.DataObject):
    """Though only the last ids are decoded at each step: few different ids, so that bytes, spaces and tags meet."""
    tokenizer, clean, _ = CASES[name]
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    pool = data.draw(st.lists(token, min_size=1, max_size=6))
    ids = data.draw(st.lists(st.sampled_from(pool), min_size=150, max_size=250))
    whole = Detokenizer(tokenizer, clean).text(ids)
    start = data.draw(st.integers(0, len(whole)))
    stop = [whole[start : start + 4]] if whole[start : start + 4] else []
    read = reader(name, *stop)
    growing, text = StableText(read), ""
    for end in range(1, len(ids) + 1):
        text += growing.add(ids[end - 1 : end])
        assert text == StableText(read).add(ids[:end])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bytes", "a red circle, it's here. 日本語 🦙 "),
        ("locations", "cat <loc0001> é 🦙 "),
        ("words", "a red circle , it ' s here . "),
    ],
)
def test_each_id_is_decoded_a_few_times_however_long_the_answer_is(name: str, text: str):
    tokenizer, clean, tagged = CASES[name]
    ids = tokenizer.encode(text * 200, add_special_tokens=False).ids
    detokenizer = Detokenizer(tokenizer, clean)
    decode, decoded = detokenizer.decode, []
    detokenizer.decode = lambda some: decoded.append(len(some)) or decode(some)
    growing = StableText(Reader(detokenizer, tagged, ()))
    for number in ids:
        growing.add([number])
    assert len(ids) > 1500
    assert sum(decoded) < 100 * len(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", CASES)
def test_stop_strings_end_long_answers_where_the_whole_text_has_them(name: str, data: st.DataObject):
    """Though only the last ids are decoded at each step."""
    tokenizer, clean, _ = CASES[name]
    tokens = Detokenizer(tokenizer, clean)
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), min_size=60, max_size=90))
    whole = tokens.text(ids)
    start = data.draw(st.integers(0, max(0, len(whole) - 1)))
    stop = whole[start : start + data.draw(st.integers(1, 6))] or "a"
    stops = reader(name, stop).stops
    first = next((end for end in range(1, len(ids) + 1) if stop in tokens.text(ids[:end])), None)
    assert next((end for end in range(1, len(ids) + 1) if stops(ids[:end])), None) == first


def test_a_tag_may_be_a_stop_string():
    tokenizer = checkpoint("kosmos2")
    text = "<phrase> a red circle</phrase><object><patch_index_0001><patch_index_0002></object> and more"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for stop, shown in (("</object>", "a red circle"), ("</phrase>", "a red circle"), ("more", "a red circle and")):
        read = reader("words", stop)
        given_, whole = pieces(read, ids)
        assert whole == shown, stop
        assert whole.startswith(given_[-1])


@pytest.mark.parametrize(
    ("name", "texts"),
    [("bytes", ["é", "🦙", "日本語 ok", "a  b"]), ("locations", ["é", "🦙 x"]), ("words", ["a cat"])],
)
def test_text_comes_back_character_by_character(name: str, texts: list[str]):
    for text in texts:
        ids = CASES[name][0].encode(text, add_special_tokens=False).ids
        given_, whole = pieces(reader(name), ids)
        assert whole == text
        assert not any("\ufffd" in some for some in given_)


def test_words_are_given_as_they_come():
    read, ids = reader("words"), checkpoint("kosmos2").encode("a red circle", add_special_tokens=False).ids
    assert len(set(pieces(read, ids)[0])) > 2, "not all at the end"


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab", max_size=12), stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_where_stop_strings_begin_or_may_begin(text: str, stop: list[str]):
    stops = StopStrings(stop, lambda ids: text)
    found = stops.find(text)
    places = [place for place in range(len(text)) if any(text.startswith(one, place) for one in stop)]
    assert found == (places[0] if places else None)
    assert stops([1]) == bool(places)
    size = stops.undecided(text)
    open_ends = [n for n in range(1, len(text) + 1) if any(one.startswith(text[-n:]) and len(one) > n for one in stop)]
    assert size >= max(open_ends, default=0)


def test_spaces_are_cleaned_as_by_the_source():
    assert cleaned("a cat , is n't it ' s ? I 've") == "a cat, isn't it's? I've"
