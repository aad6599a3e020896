"""Answers held to a grammar of boxes: over any logits they can be read to their end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import shapes
from helpers import CHECKPOINTS
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_vlm.graphs.manifest import GenerationDefaults, LocationTokens, PatchTokens, Sampling
from onnx_vlm.runtime import InputError, load
from onnx_vlm.runtime.generation.steps import drive
from onnx_vlm.runtime.generation.strategy import answer
from onnx_vlm.runtime.grounding.formats import box_format
from onnx_vlm.runtime.grounding.grammar import Constraint, Grammar, Vocabulary
from onnx_vlm.runtime.grounding.locations import boxes
from onnx_vlm.runtime.grounding.patches import read
from onnx_vlm.runtime.options import resolve
from onnx_vlm.runtime.stream import fold
from tokenizers import Tokenizer

END = 1
LOCATIONS = LocationTokens("<loc{:04d}>", "<seg{:03d}>", 16, 128, 1024, ("ymin", "xmin", "ymax", "xmax"), ";")
PATCHES = PatchTokens(
    "<patch_index_{:04d}>",
    32,
    ("<phrase>", "</phrase>"),
    ("<object>", "</object>"),
    "</delimiter_of_multi_objects/>",
)


@dataclass(frozen=True)
class Case:
    format: LocationTokens | PatchTokens
    tokenizer: Tokenizer
    end: int
    grammar: Grammar

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def case(name: str, format: LocationTokens | PatchTokens, end: int) -> Case:
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json"))
    vocab = max(tokenizer.get_vocab().values()) + 3  # as a head that is padded
    return Case(format, tokenizer, end, box_format(format).grammar(Vocabulary(tokenizer, vocab, [end, 10**6])))


CASES = {"locations": case("paligemma2", LOCATIONS, 1), "patches": case("kosmos2", PATCHES, 2)}
PROMPTS = {
    "locations": ["detect cat", "<loc0001><loc0002><loc0003><loc0004> what"],
    "patches": ["<grounding> An image of", "<phrase> it</phrase>", "<phrase> it", "<object><patch_index_0004>", "<s>"],
}
EDGES = "<loc(\\d{4})>" * 4
LOCATED = re.compile(f"(?:{EDGES}(?:<seg\\d{{3}}>){{16}}[^<;]*|{EDGES}[^<;]*)(?:;|$)")
OPTIONS = [
    {},
    {"do_sample": True, "temperature": 3.0},
    {"do_sample": True, "top_k": 1, "top_p": 0.1, "min_p": 0.9},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.8, "num_beams": 2},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": -1.0},
    {"num_beams": 2, "do_sample": True, "top_k": 3, "num_return_sequences": 2},
]


def answers(one: Case, prompts: list[list[int]], length: int, seed: int, options: dict) -> list[list[list[int]]]:
    """Constrained answers of a model whose logits are noise that leans towards some ids: ends, tags, text."""
    random = np.random.default_rng(seed)
    vocab = len(one.grammar.kinds)
    lean = random.choice([-20, 0, 0, 20], max(one.grammar.kinds) + 1)[one.grammar.kinds]

    def logits(rows: int) -> np.ndarray:
        return (random.normal(0, 4, (rows, vocab)) + lean).astype(np.float32)

    resolved = resolve(
        {**options, "seed": seed, "max_new_tokens": length}, GenerationDefaults((one.end,), 9, 99, Sampling())
    )
    constraint = Constraint(one.grammar, length, prompts)
    search = answer(logits(len(prompts)), prompts, resolved, [one.end], (), [constraint])
    found = fold(drive(search, lambda rows, ids, before: logits(len(rows))))
    return [[answered.ids for answered in alternatives] for alternatives in found]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(4, 60))
def test_locations_are_boxes_to_the_end_or_nothing(options: dict, seed: int, length: int):
    one = CASES["locations"]
    prompts = [one.ids(text) for text in PROMPTS["locations"]]
    for ids in (ids for some in answers(one, prompts, length, seed, options) for ids in some):
        text, found = one.text(ids), boxes(one.text(ids), LOCATIONS, 1024, 1024)
        assert ids == [one.end] or (found and LOCATED.sub("", text).strip() == ""), text
        assert len(found) == (text.count(";") + 1 if text else 0), text
        assert text.count("<loc") == 4 * len(found)
        assert all(box.xmin < box.xmax and box.ymin < box.ymax for box in found)
        assert one.end in ids or len(ids) == length


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(7, 60))
def test_every_phrase_has_its_boxes_and_there_is_one(options: dict, seed: int, length: int):
    one = CASES["patches"]
    prompts = PROMPTS["patches"]
    for prompt, some in zip(prompts, answers(one, list(map(one.ids, prompts)), length, seed, options)):
        for ids in some:
            text = one.text(ids)
            whole = one.text([*one.ids(prompt), *ids])
            _, entities = read(whole, PATCHES, 32, 32)
            assert entities, whole
            assert len(entities) == whole.count("</phrase>") == text.count("</object>")
            assert text.count("<patch_index_") == 2 * sum(len(entity.boxes) for entity in entities)
            assert all(entity.label for entity in entities)
            assert all(b.xmin < b.xmax and b.ymin < b.ymax for entity in entities for b in entity.boxes)
            assert one.end in ids or len(ids) == length


@pytest.mark.parametrize(
    ("name", "prompt", "texts"),
    [
        ("locations", "detect", [""]),
        ("locations", "detect", ["<loc0000><loc0001><loc0001><loc1023> red circle", "<loc0000>" * 2 + "<loc0009>" * 2]),
        ("locations", "detect", [" ; ".join(["<loc0010><loc0020><loc0030><loc0040> red circle"] * 3)]),
        ("locations", "segment", ["<loc0010><loc0020><loc0030><loc0040>" + "<seg001>" * 16 + " red circle"]),
        (
            "patches",
            "<grounding> An image of",
            [
                "<phrase> a red circle</phrase><object><patch_index_0001><patch_index_0500>"
                "</delimiter_of_multi_objects/><patch_index_0007><patch_index_0007></object> and"
                "<phrase> 2 cats</phrase><object><patch_index_0001><patch_index_0500></object>",
            ],
        ),
        ("patches", "<phrase> it</phrase>", ["<object><patch_index_0001><patch_index_0500></object>"]),
        ("patches", "<phrase> it</phrase><object><patch_index_0001><patch_index_0500></object> is", ["", " a cat"]),
    ],
)
def test_what_models_write_is_in_the_grammar(name: str, prompt: str, texts: list[str]):
    """And every token of it is allowed, with just as much room as it takes."""
    one = CASES[name]
    for text in texts:
        ids, given_ = [*one.ids(text), one.end], one.ids(prompt)
        constraint = Constraint(one.grammar, max(4, len(ids)), [given_])
        for place, number in enumerate(ids):
            assert constraint.allowed(given_, ids[:place])[number], (text, one.text(ids[:place]))


@pytest.mark.parametrize(
    ("name", "prompt", "begin", "never"),
    [
        ("locations", "", "", ["<seg001>", "red", ";"]),
        ("locations", "", "<loc0005><loc0007>", ["<loc0005>", "<loc0001>", "red", ";"]),
        ("locations", "", "<loc0005>", ["<loc1023>"]),
        ("locations", "", "<loc0001><loc0002><loc0003><loc0004>", ["<loc0009>"]),
        ("locations", "", "<loc0001><loc0002><loc0003><loc0004><seg000>", ["red", ";", "<loc0009>"]),
        ("patches", "", "", ["<object>", "</phrase>", "<patch_index_0001>", "<grounding>", "<"]),
        ("patches", "", "<phrase>", ["</phrase>", "<object>", "<phrase>"]),
        ("patches", "", "<phrase> it</phrase><object><patch_index_0033>", ["<patch_index_0032>", "<patch_index_0002>"]),
    ],
)
def test_what_cannot_come(name: str, prompt: str, begin: str, never: list[str]):
    one = CASES[name]
    allowed = Constraint(one.grammar, 99, [[]]).allowed(one.ids(prompt), one.ids(begin))
    for text in never:
        assert not allowed[one.ids(text)[-1]], text
    assert begin == "" or not allowed[one.end] or begin.count("loc") == 4
    assert allowed.any()


def test_without_room_for_a_box_an_answer_is_refused():
    one, other = CASES["locations"], CASES["patches"]
    with pytest.raises(InputError, match="3 tokens has no room for a box; give max_new_tokens of at least 4"):
        Constraint(one.grammar, 3, [[]])
    for prompt, least in (("An image of", 7), ("<phrase> it</phrase>", 4)):
        Constraint(other.grammar, least, [other.ids(prompt)])
        with pytest.raises(InputError, match=f"at least {least}"):
            Constraint(other.grammar, least - 1, [other.ids(prompt)])


def test_a_model_without_boxes_is_refused():
    with pytest.raises(InputError, match="writes no boxes"):
        box_format(None).grammar(Vocabulary(CASES["locations"].tokenizer, 9, [1]))
    with pytest.raises(InputError, match="no token <phrase>"):
        box_format(PATCHES).grammar(Vocabulary(CASES["locations"].tokenizer, 400, [1]))


@pytest.mark.parametrize("name", ["paligemma", "kosmos2"])
def test_trained_checkpoints_answer_no_worse(bundles: Callable[..., Path], name: str, figure: Callable[[str], None]):
    """On held-out pictures; beams, draws and batches stay in the grammar too."""
    vlm = load(bundles(name), threads=1)
    ask = shapes.grounded_questions if name == "kosmos2" else shapes.questions
    right = dict.fromkeys((None, "boxes"), 0)
    asked = 0
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + 8):
        scene = shapes.scene(seed)
        questions = [one for one in ask(scene) if one.task in ("detect", "grounded", "phrase")]
        prompts, pictures = [one.prompt for one in questions], [shapes.draw(scene)] * len(questions)
        asked += len(questions)
        for constrain in right:
            for question, found in zip(questions, vlm.generate(prompts, pictures, constrain=constrain)):
                text = vlm.pipeline.prompts.decode(found.token_ids)
                judge = shapes.is_right_grounded if name == "kosmos2" else shapes.is_right
                right[constrain] += judge(question, text)
    figure(f"{name}: {right[None]} of {asked} boxes right, constrained {right['boxes']}")
    assert right["boxes"] >= right[None]
    for options in ({"num_beams": 3}, {"do_sample": True, "temperature": 50.0, "seed": 3}):
        for found in vlm.generate(prompts, pictures, constrain="boxes", max_new_tokens=30, **options):
            assert found.boxes or len(found.token_ids) == 1


published_answers = pytest.mark.parametrize(
    ("kind", "prompt", "text"),
    [
        ("locations", "detect", "<loc0051><loc0309><loc0708><loc0646> old shoe ; <loc0001>"),
        ("locations", "segment", "<loc0051><loc0309><loc0708><loc0646>" + "<seg009>" * 16 + " shoe"),
        (
            "patches",
            "<grounding> An image of",
            "<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> warming himself by"
            "<phrase> a fire</phrase><object><patch_index_0006><patch_index_0879></object>.",
        ),
    ],
)


def assert_allowed(tokenizer: Tokenizer, format: LocationTokens | PatchTokens, prompt: str, text: str) -> None:
    ids, before = (tokenizer.encode(some, add_special_tokens=False).ids for some in (text, prompt))
    vocabulary = Vocabulary(tokenizer, tokenizer.get_vocab_size(), [1])
    constraint = Constraint(box_format(format).grammar(vocabulary), 64, [before])
    for index, token_id in enumerate(ids):
        assert constraint.allowed(before, ids[:index])[token_id], tokenizer.id_to_token(token_id)


@published_answers
def test_published_answers_are_allowed(kind: str, prompt: str, text: str):
    assert_allowed(CASES[kind].tokenizer, CASES[kind].format, prompt, text)


@pytest.mark.needs("processors/paligemma-3b-224", "processors/kosmos-2-patch14-224")
@published_answers
def test_published_answers_are_allowed_in_published_vocabularies(assets: Path, kind: str, prompt: str, text: str):
    folder = {"locations": "paligemma-3b-224", "patches": "kosmos-2-patch14-224"}[kind]
    tokenizer = Tokenizer.from_file(str(assets / "processors" / folder / "tokenizer.json"))
    assert_allowed(tokenizer, CASES[kind].format, prompt, text)
