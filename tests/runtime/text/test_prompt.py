"""Prompts of the trained checkpoints' tokenizers; those of published ones are in `test_published_prompts.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import CHECKPOINTS
from onnx_vlm.graphs.manifest import ChatPrompt, TextPrompt, TileNames
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.text.prompt import Prompts
from tokenizers import Tokenizer

TILE = np.zeros((1, 3, 2, 2), np.float32)
TILE_TOKENS = 4


def token_id(name: str, token: str) -> int:
    return Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json")).token_to_id(token)


IMAGE = token_id("paligemma2", "<image>")
LOCATING = TextPrompt("", "", "<image>", IMAGE, "", "<bos>", "\n", False, False, 1, None)
GROUNDED = TextPrompt(
    "<s>", "<image>", "<image>", token_id("kosmos2", "<image>"), "</image>", "", "", True, False, 0, 1
)
CHAT_IMAGE, CHAT_VIDEO = (token_id("perception_lm", token) for token in ("<|image|>", "<|video|>"))
CHAT = ChatPrompt({"bos_token": "<|begin_of_text|>"}, "<|image|>", CHAT_IMAGE, "<|video|>", CHAT_VIDEO)


IN_A_GRID = ChatPrompt(
    {},
    "<image>",
    token_id("smolvlm", "<image>"),
    tiles=TileNames("[<row_{row}_col_{column}>", "\n", "-", "[<global-img>", "]"),
    system="parts",
)


@pytest.fixture(scope="module")
def in_a_grid() -> Prompts:
    return Prompts(CHECKPOINTS / "smolvlm", IN_A_GRID, 1)


@pytest.fixture(scope="module")
def locating() -> Prompts:
    return Prompts(CHECKPOINTS / "paligemma2", LOCATING, TILE_TOKENS)


@pytest.fixture(scope="module")
def grounded() -> Prompts:
    return Prompts(CHECKPOINTS / "kosmos2", GROUNDED, TILE_TOKENS)


@pytest.fixture(scope="module")
def framed() -> Prompts:
    """A chat whose template writes something else than the placeholder, and that takes no videos."""
    image, start, end = "<image_soft_token>", "<start_of_image>", "<end_of_image>"
    around = {"written": start, "image_start": f"\n\n{start}", "image_end": f"{end}\n\n"}
    format = ChatPrompt({"bos_token": "<bos>"}, image, token_id("gemma3", image), **around)
    return Prompts(CHECKPOINTS / "gemma3", format, TILE_TOKENS)


@pytest.fixture(scope="module")
def chat() -> Prompts:
    return Prompts(CHECKPOINTS / "perception_lm", CHAT, TILE_TOKENS)


def test_images_stand_before_the_text(locating: Prompts):
    bos, newline = (locating.tokenizer.token_to_id(token) for token in ("<bos>", "\n"))
    assert locating.encode("", [TILE]).ids.tolist() == [IMAGE] * TILE_TOKENS + [bos, newline]
    encoded = locating.encode("caption en", [TILE, TILE])
    assert encoded.ids.tolist() == [IMAGE] * 2 * TILE_TOKENS + [bos, *locating.ids("caption en"), newline]
    assert encoded.is_image.tolist() == [True] * 2 * TILE_TOKENS + [False] * (len(encoded.ids) - 2 * TILE_TOKENS)


def test_an_image_stands_between_its_tags(grounded: Prompts):
    text = "<grounding> An image of"
    start, image, end = (grounded.tokenizer.token_to_id(token) for token in ("<s>", "<image>", "</image>"))
    assert grounded.encode(text, []).ids.tolist() == [start, *grounded.ids(text)]
    encoded = grounded.encode(f"  {text} ", [TILE])
    assert encoded.is_image.tolist() == [False] * 2 + [True] * TILE_TOKENS + [False] * (
        len(encoded.ids) - 2 - TILE_TOKENS
    )
    assert encoded.ids[~encoded.is_image].tolist() == [start, image, end, *grounded.ids(text)]


def test_text_stands_around_the_images_of_a_chat(framed: Prompts):
    encoded = framed.encode("Which is larger?", [TILE, TILE])
    image = f"\n\n<start_of_image>{'<image_soft_token>' * TILE_TOKENS}<end_of_image>\n\n"
    text = f"<bos><start_of_turn>user\n{image * 2}Which is larger?<end_of_turn>\n<start_of_turn>model\n"
    assert encoded.ids.tolist() == framed.ids(text)
    assert (encoded.ids[encoded.is_image] == framed.format.image_token_id).all()
    assert encoded.is_image.sum() == 2 * TILE_TOKENS


def test_what_a_chat_with_text_around_images_refuses(framed: Prompts):
    for text in ("<image_soft_token>", "<start_of_image>"):
        with pytest.raises(InputError, match=f"the prompt has {text} in it"):
            framed.encode(f"What is {text}?", [TILE])
    with pytest.raises(InputError, match="takes no videos, 1 given"):
        framed.encode("What happens?", [], [TILE])


@pytest.mark.parametrize(
    "prompt",
    ["caption en", "answer en What is it?", "ocr", "detect cat ; dog", "segment the cat", "<loc0012> what?", "é你🙂"],
)
def test_prompts_of_every_task(locating: Prompts, prompt: str):
    ids = locating.encode(prompt, [TILE]).ids.tolist()
    assert locating.tokenizer.decode(ids[TILE_TOKENS + 1 : -1], skip_special_tokens=False) == prompt


def test_answers_keep_locations_and_lose_special_tokens(locating: Prompts):
    answer = "<loc0051><loc0309><loc0708><loc0646> shoe"
    ids = locating.tokenizer.encode(answer, add_special_tokens=False).ids
    assert locating.decode([*ids, locating.tokenizer.token_to_id("<eos>")]) == answer


def test_placeholders_in_a_prompt_are_refused(locating: Prompts, grounded: Prompts, chat: Prompts):
    for prompts, placeholder in ((locating, "<image>"), (grounded, "<image>"), (chat, "<|image|>")):
        with pytest.raises(InputError, match="placeholders are added"):
            prompts.encode(f"{placeholder}caption", [TILE])
    with pytest.raises(InputError, match="at least one"):
        locating.encode("caption", [])
    with pytest.raises(InputError, match="at most 1 image"):
        grounded.encode("caption", [TILE, TILE])


def test_conversations(chat: Prompts):
    system = {"role": "system", "content": "Be brief."}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": " What is it? "}, {"type": "image"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And now?"},
    ]
    encoded = chat.encode([system, *turns], [np.concatenate([TILE] * 5)])
    text = chat.tokenizer.decode(encoded.ids[~encoded.is_image].tolist(), skip_special_tokens=False)
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert encoded.is_image.sum() == 5 * TILE_TOKENS
    assert (encoded.ids[encoded.is_image] == CHAT_IMAGE).all()


def test_pictures_and_videos_take_the_places_of_their_kind_in_order(chat: Prompts):
    one, two, clip = (np.full((tiles, 3, 2, 2), tiles, np.float32) for tiles in (2, 3, 4))
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "One."}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Two."}, {"type": "image"}]},
    ]
    encoded = chat.encode(turns, [one, two], [clip])
    assert [len(tiles) for tiles in encoded.tiles] == [2, 3, 4], "the template puts pictures before videos"
    assert (encoded.ids == CHAT_VIDEO).sum() == 4 * TILE_TOKENS
    assert encoded.is_image.sum() == 9 * TILE_TOKENS


def test_tiles_are_named_by_row_and_column(in_a_grid: Prompts):
    images = [np.concatenate([TILE] * count) for count in (7, 1)]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Or "}, {"type": "image"}]},
    ]
    encoded = in_a_grid.encode(turns, images, grids=[(3, 2), (0, 0)])
    assert in_a_grid.tokenizer.decode(encoded.ids.tolist(), skip_special_tokens=False) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\nUser:"
        "[<row_1_col_1><image>[<row_1_col_2><image>[<row_1_col_3><image>\n"
        "[<row_2_col_1><image>[<row_2_col_2><image>[<row_2_col_3><image>\n"
        "-[<global-img><image>]Or [<global-img><image>]<end_of_utterance>\nAssistant:"
    )
    assert (encoded.ids[encoded.is_image] == IN_A_GRID.image_token_id).all()
    assert encoded.is_image.sum() == 8
    assert [len(tiles) for tiles in encoded.tiles] == [7, 1]


def test_a_model_without_videos_says_so(in_a_grid: Prompts):
    with pytest.raises(InputError, match="takes no videos, 1 given"):
        in_a_grid.encode("What happens?", [], [TILE])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"role": "user", "content": [{"type": "image"}]}], "names 1 images and 0 videos, 2 and 0 are given"),
        ([{"role": "user"}], "a role and a content"),
        ([{"role": "user", "content": 5}], "a text or a list of parts"),
        (["hello"], "a role and a content"),
        ([{"role": "assistant", "content": "Hm."}], "names 0 images and 0 videos, 2 and 0 are given"),
    ],
)
def test_conversations_that_make_no_sense_are_refused(chat: Prompts, prompt: Any, said: str):
    with pytest.raises(InputError, match=said):
        chat.encode(prompt, [TILE, TILE])


def test_models_without_a_chat_template_take_no_conversations_or_videos(locating: Prompts):
    with pytest.raises(InputError, match="no conversations"):
        locating.encode([{"role": "user", "content": "caption"}], [TILE])
    with pytest.raises(InputError, match="no videos"):
        locating.encode("caption", [TILE], [TILE])
