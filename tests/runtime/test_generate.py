"""Answers of the trained checkpoint, through Python and the command, without torch."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import VLM, GenerationError, InputError, ProviderError, load
from onnx_vlm.runtime.inference.host_cache import Cache
from PIL import Image


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT), 320, 240).save(path)
    return path


def test_boxes_are_in_pixels_of_the_given_picture(vlm: VLM):
    scene = shapes.scene(shapes.HELD_OUT)
    thing = scene.things[0]
    for width, height in ((320, 240), (1000, 700)):
        answer = vlm.generate(f"detect {thing.name}", shapes.draw(scene, width, height))
        box = answer.boxes[0]
        assert box.label == thing.name
        edges = (thing.left * width, thing.top * height, thing.right * width, thing.bottom * height)
        assert np.allclose((box.xmin, box.ymin, box.xmax, box.ymax), np.array(edges) / shapes.GRID, atol=width / 14)


def test_prompts_together_are_answered_as_one_by_one(vlm: VLM):
    scenes = [shapes.scene(shapes.HELD_OUT + index) for index in range(4)]
    prompts = ["caption", f"detect {scenes[1].things[0].name}", "how many circles", "detect red circle ; blue square"]
    pictures = [shapes.draw(scene) for scene in scenes]
    together = vlm.generate(prompts, pictures)
    alone = [vlm.generate(prompt, picture) for prompt, picture in zip(prompts, pictures)]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert len({answer.prompt_tokens for answer in alone}) > 1, "the prompts differ in length"
    assert [answer.boxes for answer in together] == [answer.boxes for answer in alone]


def test_several_pictures_for_one_prompt(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    one, two = vlm.generate("caption", picture), vlm.generate("caption", [picture, picture])
    assert two.prompt_tokens - one.prompt_tokens == 16


def test_an_answer_says_how_it_ended(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    whole, cut = vlm.generate("caption", picture), vlm.generate("caption", picture, max_new_tokens=2)
    assert (whole.finish_reason, whole.token_ids[-1]) == ("stop", 1)
    assert (cut.finish_reason, cut.token_ids) == ("length", whole.token_ids[:2])
    assert whole.text.startswith(cut.text)
    assert set(whole.timings) == {"preprocess", "vision", "prefill", "decode", "tokens_per_second"}


def test_a_stream_gives_the_text_piece_by_piece(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    for prompt in ("caption", f"detect {shapes.scene(shapes.HELD_OUT).things[0].name}"):
        stream, whole = vlm.stream(prompt, picture), vlm.generate(prompt, picture)
        with pytest.raises(GenerationError, match="not come to its end"):
            _ = stream.generation
        pieces = list(stream)
        assert len(pieces) > 4
        assert "".join(pieces) == whole.text
        assert dataclasses.replace(stream.generation, timings={}) == dataclasses.replace(whole, timings={})
    assert list(vlm.stream("caption", picture, num_beams=2)) == [vlm.generate("caption", picture, num_beams=2).text]


def test_a_stream_that_is_given_up_frees_its_cache(vlm: VLM):
    """By closing, by leaving its block, by forgetting it."""
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))

    def caches() -> int:
        return sum(type(one) is Cache for one in gc.get_objects())

    gc.collect()
    before = caches()
    for give_up in (lambda stream: stream.close(), lambda stream: stream.__exit__(None, None, None), lambda _: None):
        stream = vlm.stream("caption", picture)
        assert next(stream)
        assert caches() == before + 1
        give_up(stream)
        del stream
        assert caches() == before


def test_stop_strings_end_an_answer_and_are_not_shown(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    whole = vlm.generate("caption", picture)
    middle = whole.text.index(" ", 5)
    stop = whole.text[middle - 2 : middle + 2]
    for options in ({}, {"num_beams": 2}, {"stop": ["no such text", stop]}):
        answer = vlm.generate("caption", picture, **{"stop": stop, **options})
        assert answer.text == whole.text[: middle - 2]
        assert answer.finish_reason == "stop"
        assert len(answer.token_ids) < len(whole.token_ids)
    prompts = ["caption", "how many circles", "caption"]
    assert [one.text for one in vlm.generate(prompts, [picture] * 3, stop=stop)][::2] == [whole.text[: middle - 2]] * 2


def test_draws_are_alike_for_equal_seeds_alone_and_together(vlm: VLM):
    picture, hot = shapes.draw(shapes.scene(shapes.HELD_OUT)), {"do_sample": True, "temperature": 4.0, "top_k": 50}
    prompts = ["caption", "how many circles", "detect red circle"]
    together = vlm.generate(prompts, [picture] * 3, seed=5, num_return_sequences=2, **hot)
    alone = [vlm.generate(prompt, picture, seed=5, num_return_sequences=2, **hot) for prompt in prompts]
    drawn = [[one.token_ids, *(other.token_ids for other in one.alternatives)] for one in together]
    assert drawn == [[one.token_ids, *(other.token_ids for other in one.alternatives)] for one in alone]
    assert drawn[0][0] != drawn[0][1]
    assert len({tuple(vlm.generate("caption", picture, seed=seed, **hot).token_ids) for seed in range(5)}) > 1
    cold = vlm.generate("caption", picture, do_sample=True, temperature=0.01, seed=0)
    assert cold.token_ids == vlm.generate("caption", picture).token_ids


def test_defaults_are_those_of_the_checkpoint(bundle: Path, tmp_path: Path):
    """As its generation_config.json has them, which export puts into the manifest."""
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    data = json.loads(path.read_text())
    data["generation"] |= {"max_new_tokens": 3, "defaults": data["generation"]["defaults"] | {"num_beams": 2}}
    path.write_text(json.dumps(data))
    vlm, picture = load(tmp_path / "bundle", threads=1), shapes.draw(shapes.scene(shapes.HELD_OUT))
    answer = vlm.generate("caption", picture)
    assert answer.score is not None
    assert len(answer.token_ids) == 3
    assert vlm.generate("caption", picture, num_beams=1).score is None


def test_options_that_cannot_be(vlm: VLM):
    picture = Image.new("RGB", (10, 10))
    for options, said in (
        ({"num_beams": 0}, "num_beams is 0; give 1 or more"),
        ({"num_beams": 2.0}, "num_beams is 2.0"),
        ({"temperature": 0}, "temperature is 0; give a number from 1e-06 to 1e\\+06"),
        ({"top_p": 1.5}, "top_p is 1.5; give a number from 0 to 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": "a"}, "min_p is 'a'"),
        ({"stop": ""}, "not empty"),
        ({"stop": 3}, "stop is 3"),
        ({"seed": -1}, "seed is -1"),
        ({"constrain": "masks"}, "constrain is 'masks'; give 'boxes'"),
        ({"constrain": "boxes", "max_new_tokens": 3}, "no room for a box"),
        ({"num_return_sequences": 3}, "at most num_beams"),
        ({"early_stopping": "often"}, "True, False or 'never'"),
    ):
        with pytest.raises(InputError, match=said):
            vlm.generate("caption", picture, **options)
    with pytest.raises(TypeError, match="no option beams"):
        vlm.generate("caption", picture, beams=2)
    for prompt, options in ((["a", "b"], {}), ("a", {"num_return_sequences": 2, "num_beams": 2})):
        with pytest.raises(InputError, match="one answer to one prompt"):
            vlm.stream(prompt, picture, **options)


def test_answers_do_not_depend_on_calls_before(vlm: VLM):
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    first = vlm.generate("caption", picture)
    vlm.generate("how many squares", shapes.draw(shapes.scene(shapes.HELD_OUT + 1)))
    assert vlm.generate("caption", picture).token_ids == first.token_ids


def test_input_that_cannot_be_answered(vlm: VLM):
    picture = Image.new("RGB", (10, 10))
    room = vlm.manifest.generation.max_positions
    for prompt, images, options, said in (
        ([], [], {}, "empty"),
        ("caption", None, {}, "at least one"),
        ("caption", [], {}, "at least one"),
        (["a", "b"], [picture], {}, "2 prompts need 2 entries"),
        (["a", "b"], picture, {}, "2 prompts need 2 entries"),
        ("<image>caption", picture, {}, "<image>"),
        ("caption", picture, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("caption", picture, {"max_new_tokens": room}, f"{room} positions"),
        ("how many circles " * room, picture, {}, f"the model {room} positions"),
        ("caption", [picture] * 40, {}, f"{room} positions"),
    ):
        with pytest.raises(InputError, match=said):
            vlm.generate(prompt, images, **options)


def test_an_answer_may_fill_the_last_position(vlm: VLM):
    picture = Image.new("RGB", (10, 10))
    room = vlm.manifest.generation.max_positions - vlm.generate("caption", picture).prompt_tokens
    hot = {"do_sample": True, "temperature": 1e4, "top_k": 0, "seed": 0}  # the end token hardly comes
    answer = vlm.generate("caption", picture, max_new_tokens=room, **hot)
    assert (len(answer.token_ids), answer.finish_reason) == (room, "length")
    with pytest.raises(InputError, match="positions"):
        vlm.generate("caption", picture, max_new_tokens=room + 1)


def test_an_unknown_provider_is_refused(bundle: Path):
    with pytest.raises(ProviderError, match="supported: auto, cpu"):
        load(bundle, provider="gpu")
