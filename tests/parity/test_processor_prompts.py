"""Prompts, answers and boxes as transformers' processors have them, with trained and with published vocabularies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_vlm.runtime.grounding import patches
from onnx_vlm.runtime.images.reading import read
from onnx_vlm.runtime.images.tiles import grid_of
from onnx_vlm.runtime.images.tiles import tiles as tiles_of_image
from onnx_vlm.runtime.text.prompt import Prompts
from published_processors import KOSMOS2, PALIGEMMA, SETTINGS, TILE_TOKENS, WITH_VOCABULARY, Processor, noise

TEXTS = [
    "",
    "caption en",
    "  spaced   out \n lines ",
    "What is this?",
    "Où est-ce? ½ ﬁ ① é 你好 🙂",
    "detect cat ; dog",
    "<loc0012> what?",
    "segment <seg012>",
    "1234567 it's they're",
    "<grounding> An image of",
    "a<phrase> b </phrase>c",
    "<grounding><phrase> it</phrase><object><patch_index_0044><patch_index_0863></object> is",
    "\ttab",
    "</s> <unk>",
]


def published(name: str) -> Any:
    """The parameter of a test for a published vocabulary."""
    folder = f"processors/{name}"
    return pytest.param((name, folder), marks=pytest.mark.needs(folder), id=f"{name}, published")


def trained(name: str) -> Any:
    """The parameter of a test for a trained checkpoint's vocabulary."""
    return pytest.param((name, None), id=f"{name}, trained")


@pytest.fixture
def processor(request: pytest.FixtureRequest, assets: Path, tmp_path: Path) -> Processor:
    name, folder = request.param
    return Processor(name, tmp_path, folder and assets / folder)


every_vocabulary = pytest.mark.parametrize(
    "processor", [*map(trained, SETTINGS), *map(published, WITH_VOCABULARY)], indirect=True
)
of_kosmos2 = pytest.mark.parametrize("processor", [trained(KOSMOS2), published(KOSMOS2)], indirect=True)


@pytest.mark.parametrize("name", [published(name) for name in WITH_VOCABULARY])
def test_the_settings_are_those_that_are_published(name: tuple[str, str], assets: Path):
    settings = json.loads((assets / name[1] / "processor_config.json").read_text())
    assert settings == SETTINGS[name[0]]


@every_vocabulary
def test_prompts_have_the_ids_of_the_processor(processor: Processor):
    name, source, picture = processor.name, processor.source, noise(80, 60)
    prompts = Prompts(processor.folder, processor.behaviour.prompt, TILE_TOKENS[name])
    recipe = processor.behaviour.image
    tiles, grid = tiles_of_image(read(picture), recipe), grid_of(*picture.size, recipe)
    for text in TEXTS:
        ours = prompts.encode(text, [tiles], grids=[grid])
        if name == PALIGEMMA:
            inputs = source(images=picture, text=f"<image>{text}")
        elif name == KOSMOS2:
            inputs = source(images=picture, text=text)
            mask = np.asarray(inputs["image_embeds_position_mask"], bool)
            assert (mask == ours.is_image).all()
            assert prompts.encode(text, []).ids.tolist() == source(text=text)["input_ids"], text
        else:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            chat = source.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = source(images=picture, text=chat, add_special_tokens=False)
        ids = np.asarray(inputs["input_ids"]).ravel()
        assert ids[~ours.is_image].tolist() == ours.ids[~ours.is_image].tolist(), text
        if name != KOSMOS2:  # there the ids at the places are a numbering, never looked up
            assert ids.tolist() == ours.ids.tolist(), text


@of_kosmos2
def test_answers_decode_as_transformers_decodes_them(processor: Processor):
    for clean in (False, True):
        path = processor.folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"clean_up_tokenization_spaces": clean}))
        tokenizer, prompts = processor.source.tokenizer, Prompts(processor.folder, processor.behaviour.prompt, 64)
        for seed in range(200):
            draw = random.Random(seed)
            ids = [draw.randrange(len(tokenizer)) for _ in range(12)]
            ids += tokenizer(" it 's . I 'm here , do n't ! </phrase> . ? ' a", add_special_tokens=False)["input_ids"]
            assert prompts.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("processor", [trained(KOSMOS2)], indirect=True)
def test_entities_of_published_and_random_answers(processor: Processor):
    """Equal to `post_process_generation`, also where tags are missing, nested, swapped or repeated."""
    source, format = processor.source, processor.behaviour.grounding
    texts = [
        "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object>"
        " warming himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>."
    ]
    caption, found = patches.read(texts[0], format, 1, 1)
    assert caption == "An image of a snowman warming himself by a fire."
    assert [(one.label, one.start, one.end) for one in found] == [("a snowman", 12, 21), ("a fire", 41, 47)]
    assert found[0].boxes[0].xmin == 0.390625
    parts = [
        "<phrase>",
        "</phrase>",
        "<object>",
        "</object>",
        "</delimiter_of_multi_objects/>",
        "<patch_index_0044>",
        "<patch_index_0863>",
        "<patch_index_0001><patch_index_0001>",
        "<patch_index_0000><patch_index_0031>",
        "<grounding>",
        " a cat",
        "dog ",
        "  ",
        ".",
        "\n",
        "<",
        ">",
        "é",
        "<phrase> a b</phrase><object><patch_index_0002><patch_index_0700></object>",
        "<object><patch_index_0002><patch_index_0700></delimiter_of_multi_objects/><patch_index_0009><patch_index_0029></object>",
    ]
    draw = random.Random(0)
    texts += ["".join(draw.choices(parts, k=draw.randint(0, 12))) for _ in range(5000)]
    for text in texts:
        caption, theirs = source.post_process_generation(text)
        ours_caption, ours = patches.read(text, format, 1, 1)
        boxes = [[(box.xmin, box.ymin, box.xmax, box.ymax) for box in one.boxes] for one in ours]
        assert ours_caption == caption, text
        assert [(one.label, (one.start, one.end), some) for one, some in zip(ours, boxes)] == theirs, text


@of_kosmos2
def test_boxes_of_phrases_become_the_tokens_of_the_processor(processor: Processor):
    behaviour, source, draw = processor.behaviour, processor.source, random.Random(0)
    prompts = Prompts(processor.folder, behaviour.prompt, 64)
    for _ in range(300):
        edges = [sorted(draw.sample(range(1001), 2)) for _ in range(2)]
        box = (edges[0][0] / 1000, edges[1][0] / 1000, edges[0][1] / 1000, edges[1][1] / 1000)
        boxes = draw.choice([[box, None], [[box, (3, 70)], []], [(0, 1023), [box]], [None, None]])
        text = "<grounding> see<phrase> a cat</phrase> and <phrase>dogs</phrase> there"
        ours = prompts.encode(patches.with_boxes(text, boxes, behaviour.grounding), []).ids.tolist()
        assert ours == source(text=text, bboxes=boxes)["input_ids"], boxes
