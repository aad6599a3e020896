"""Prompts of published tokenizers against published ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_vlm.graphs.manifest import ChatPrompt, PatchTokens, TextPrompt
from onnx_vlm.runtime.grounding.patches import with_boxes
from onnx_vlm.runtime.text.prompt import Prompts

LOCATING = TextPrompt("", "", "<image>", 257152, "", "<bos>", "\n", False, False, 1, None)
GROUNDED = TextPrompt("<s>", "<image>", "<image>", 64003, "</image>", "", "", True, False, 0, 1)
CHAT = ChatPrompt({"bos_token": "<|begin_of_text|>"}, "<|image|>", 128002, "<|video|>", 128003)
PATCHES = PatchTokens(
    "<patch_index_{:04d}>",
    32,
    ("<phrase>", "</phrase>"),
    ("<object>", "</object>"),
    "</delimiter_of_multi_objects/>",
)
PALIGEMMA, PERCEPTION_LM, KOSMOS2 = (
    f"processors/{name}" for name in ("paligemma-3b-224", "perception-lm-1b", "kosmos-2-patch14-224")
)
TILE = np.zeros((1, 3, 2, 2), np.float32)


@pytest.fixture(scope="module")
def locating(assets: Path) -> Prompts:
    return Prompts(assets / PALIGEMMA, LOCATING, 256)


@pytest.fixture(scope="module")
def grounded(assets: Path) -> Prompts:
    return Prompts(assets / KOSMOS2, GROUNDED, 64)


@pytest.fixture(scope="module")
def chat(assets: Path) -> Prompts:
    return Prompts(assets / PERCEPTION_LM, CHAT, 256)


@pytest.fixture(scope="module")
def published(assets: Path) -> dict[str, Any]:
    return json.loads((assets / "expected" / "summary.json").read_text())


@pytest.mark.needs(PALIGEMMA)
def test_pictures_prefix_and_newline(locating: Prompts):
    assert locating.encode("", [TILE]).ids.tolist() == [257152] * 256 + [2, 108]
    assert len(locating.encode("answer en Where is the cow standing?", [TILE]).ids) == 266
    assert len(locating.encode("What is on the flower?", [TILE]).ids) == 264
    two = locating.encode("Describe the images.", [TILE, TILE])
    assert (len(two.ids), two.is_image.sum()) == (518, 512)
    assert two.is_image[:512].all()


@pytest.mark.needs(PALIGEMMA)
@pytest.mark.parametrize(
    "prompt",
    ["caption en", "answer en What is it?", "ocr", "detect cat ; dog", "segment the cat", "<loc0012> what?", "é你🙂"],
)
def test_prompts_of_every_task(locating: Prompts, prompt: str):
    ids = locating.encode(prompt, [TILE]).ids.tolist()
    assert ids[256] == 2
    assert ids[-1] == 108
    assert locating.tokenizer.decode(ids[257:-1], skip_special_tokens=False) == prompt


@pytest.mark.needs(PALIGEMMA)
def test_answers_keep_locations_and_lose_special_tokens(locating: Prompts):
    answer = "<loc0051><loc0309><loc0708><loc0646> shoe"
    ids = locating.tokenizer.encode(answer, add_special_tokens=False).ids
    assert len(ids) == 5
    assert locating.decode([*ids, 1]) == answer


@pytest.mark.needs(KOSMOS2, "expected")
def test_published_prompts_with_phrases_and_boxes(grounded: Prompts, published: dict[str, Any]):
    """Texts and boxes of transformers' processor test, without a picture and with one; the ids end with </s> there."""
    wanted = published["kosmos2"]["expected_input_ids"]
    cases = [
        (text, boxes)
        for text, some in zip(published["kosmos2"]["texts"], published["kosmos2"]["bboxes"])
        for boxes in some
    ]
    found = [with_boxes(text, boxes, PATCHES) for text, boxes in cases]
    ids = [[*grounded.encode(text, []).ids.tolist(), 2] for text in found]
    assert {tuple(row) for row in ids} == {tuple(row) for row in wanted}
    for text, row in zip(found, ids):
        encoded = grounded.encode(text, [TILE])
        assert encoded.is_image.tolist() == [False, False] + [True] * 64 + [False] + [False] * (len(row) - 2)
        assert encoded.ids[~encoded.is_image].tolist() == [0, 64003, 64004, *row[1:-1]]


@pytest.mark.needs(KOSMOS2, "expected")
def test_the_published_caption_decodes_as_published(grounded: Prompts, published: dict[str, Any]):
    kosmos = published["kosmos2"]
    for ids, text in (
        ("EXPECTED_IDS", "EXPECTED_PROCESSED_TEXT"),
        ("EXPECTED_IDS_LONG", "EXPECTED_PROCESSED_TEXT_LONG"),
    ):
        assert grounded.decode(kosmos[ids][0]).split("</image>")[-1] == kosmos[text]


@pytest.mark.needs(PALIGEMMA, PERCEPTION_LM, "expected")
def test_published_tokenizer_vectors(locating: Prompts, chat: Prompts, assets: Path):
    for prompts, file, name, begin in (
        (locating, "gemma", "Xenova/gemma2-tokenizer", 2),
        (chat, "llama", "Xenova/llama3-tokenizer-new", 128000),
    ):
        vectors = json.loads((assets / "expected" / f"transformersjs_{file}_tokenization.json").read_text())
        for case, vector in vectors[name].items():
            ids = prompts.tokenizer.encode(vector["text"], add_special_tokens=False).ids
            assert [begin, *ids] == vector["ids"], case
            if prompts is locating:  # the published texts of the other had spaces cleaned up
                assert prompts.tokenizer.decode(vector["ids"], skip_special_tokens=False) == vector["decoded"], case


@pytest.mark.needs(PERCEPTION_LM, "expected")
def test_published_llama_vocabulary_vectors(chat: Prompts, assets: Path):
    texts = (assets / "expected" / "ggml-vocab-llama-bpe.gguf.inp").read_text(encoding="utf-8")
    rows = (assets / "expected" / "ggml-vocab-llama-bpe.gguf.out").read_text().splitlines()
    cases = texts.split("\n__ggml_vocab_test__\n")
    assert len(cases) >= len(rows) > 40
    for text, row in zip(cases, rows):
        assert chat.tokenizer.encode(text, add_special_tokens=False).ids == [int(number) for number in row.split()]
