"""Gemma 3: an image's tokens see each other in a causal prompt, whatever parts it runs in; settings as published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CHECKPOINTS
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.families import gemma3 as family
from onnx_vlm.graphs import CheckpointError, manifest
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.images.reading import read
from onnx_vlm.runtime.images.tiles import tiles
from onnx_vlm.runtime.inference.host_run import HostRun
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.scheduling import Scheduler
from onnx_vlm.runtime.scheduling.pace import Pace
from onnx_vlm.runtime.text.prompt import Prompts
from onnx_vlm.runtime.verify import verify
from published_processors import SCALED, assert_same_pixels, noise
from random_models import gemma3
from random_parity import RandomParity
from random_rows import GEMMA3
from source import ask, open_source
from test_random_parity import pictures
from transformers import AutoProcessor

#: processor_config.json and preprocessor_config.json of google/gemma-3-4b-it.
PROCESSOR = {"image_seq_length": 256, "processor_class": "Gemma3Processor"}
IMAGES = SCALED | {
    "do_convert_rgb": None,
    "do_pan_and_scan": None,
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "resample": 2,
    "size": {"height": 896, "width": 896},
}
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 16 tokens, and windows of 9."""
    return gemma3(tmp_path_factory.mktemp("gemma3") / "checkpoint", seed=2, side=8, window=9)


@pytest.fixture(scope="module")
def vlm(checkpoint: Path, threads: int) -> VLM:
    return load(export_model(checkpoint, checkpoint.parent / "bundle", prove=False), threads=threads)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of prompts a scheduler ran at once, where it would run 5."""
    ran, append = [], HostRun.append

    def noting(run: HostRun, first: int, rows: Sequence[np.ndarray]) -> np.ndarray:
        ran.extend(map(len, rows))
        return append(run, first, rows)

    monkeypatch.setattr(Pace, "tokens", lambda self, left, others: min(left, 5))
    monkeypatch.setattr(HostRun, "append", noting)
    return ran


def test_prompts_that_run_in_parts_are_answered_as_whole_ones(
    checkpoint: Path, vlm: VLM, parts: list[int], judge: Judge
):
    """Image tokens run together, also where a prompt goes on from one that began alike."""
    some = pictures(np.random.default_rng(0), 3)
    source = open_source(checkpoint)
    requests = [
        ask("Which is larger?", some[:2]),
        ask("Which is larger? And why?", some[:2]),
        ask("Which is larger?", some[1:]),
        ask("How are you?"),
    ]
    with Scheduler(vlm, max_rows=2, max_tokens=256) as scheduler:
        answers = [scheduler.submit(one, max_new_tokens=NEW_TOKENS).result() for one in requests]
        assert scheduler.state().prefix_hits == 1
    assert {16, 5} < set(parts), "an image is a part of its own, text is cut"
    for request, answer in zip(requests, answers):
        (truth,) = source.answer([request], NEW_TOKENS)
        judge.tokens(source, answer.token_ids, truth, repr(request.prompt))


def test_turns_are_answered_as_the_whole_conversation_is(vlm: VLM):
    first, second = pictures(np.random.default_rng(1), 2)
    chat = vlm.chat(first)
    shown = [first]
    for question, media in (("What is it?", []), ("And this?", [second]), ("Why?", [])):
        shown += media
        answer = chat.ask(question, media, max_new_tokens=NEW_TOKENS)
        whole = vlm.generate(chat.messages[:-1], shown, max_new_tokens=NEW_TOKENS)
        assert answer.token_ids == whole.token_ids


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_precisions_and_their_proof(checkpoint: Path, tmp_path: Path, precision: str):
    bundle = export_model(checkpoint, tmp_path / "bundle", precision=precision)
    assert manifest.load(bundle).proof.loss is not None
    assert all(check.passed for check in verify(bundle, LoadOptions(threads=1)))


def test_the_portable_target(random_parity: RandomParity):
    some = pictures(np.random.default_rng(7), 4)
    requests = [ask("Which is larger?", some[:2]), ask("What is it?", some[2:3]), ask("", some[3:])]
    random_parity.check(7, GEMMA3["window shorter than an image"], requests, target="portable")


def write_config(folder: Path, image_size: int) -> None:
    """A config.json beside a processor's files, and weights that nobody reads."""
    token = AutoProcessor.from_pretrained(folder).tokenizer.image_token_id
    config = {"model_type": "gemma3", "image_token_index": token, "vision_config": {"image_size": image_size}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "pan_and_scan_min_crop_size": 40,
            "pan_and_scan_max_num_crops": 3,
            "pan_and_scan_min_ratio_to_activate": 1.5,
        },
    ],
    ids=["as the processor has it", "others"],
)
def test_long_images_are_cut_into_crops(tmp_path: Path, settings: dict[str, Any]):
    for path in (CHECKPOINTS / "gemma3").iterdir():
        if path.suffix in (".json", ".jinja"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    written = json.loads((tmp_path / "processor_config.json").read_text())
    written["image_processor"] |= {"do_pan_and_scan": True, **settings}
    (tmp_path / "processor_config.json").write_text(json.dumps(written))
    write_config(tmp_path, 56)
    processor, recipe = AutoProcessor.from_pretrained(tmp_path), family.recipe(Checkpoint(tmp_path))
    prompts = Prompts(tmp_path, recipe.prompt, 16)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    numbers = set()
    for size in ((1, 1), (300, 1400), (1000, 300), (513, 300), (613, 511), (512, 613), (60, 2000), (2000, 97)):
        theirs = processor(
            text=text,
            images=[noise(*size)],
            add_special_tokens=False,
            do_pan_and_scan=True,
            return_tensors="np",
            **settings,
        )
        ours = tiles(read(noise(*size)), recipe.image)
        assert_same_pixels(ours, theirs["pixel_values"], recipe.image)
        assert prompts.encode(messages, [ours]).ids.tolist() == theirs["input_ids"][0].tolist(), size
        numbers.add(len(ours))
    assert numbers == {1, 3, 4} if settings else numbers == {1, 3, 4, 5}


def test_images_of_the_published_size(tmp_path: Path):
    for path in (CHECKPOINTS / "gemma3").glob("*token*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes((CHECKPOINTS / "gemma3" / "chat_template.jinja").read_bytes())
    (tmp_path / "processor_config.json").write_text(json.dumps(PROCESSOR))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    write_config(tmp_path, 896)
    (tmp_path / "model.safetensors").touch()
    recipe = family.recipe(Checkpoint(tmp_path)).image
    processor = AutoProcessor.from_pretrained(tmp_path).image_processor
    for size in ((1, 1), (1, 50), (37, 53), (640, 480), (895, 897), (1283, 481)):
        theirs = np.asarray(processor(noise(*size), return_tensors="np")["pixel_values"])
        assert_same_pixels(tiles(read(noise(*size)), recipe), theirs, recipe)


@pytest.mark.parametrize(
    ("file", "keys", "value", "said"),
    [
        ("processor_config.json", ("image_processor", "do_pan_and_scan"), "yes", "do_pan_and_scan is 'yes'; give true"),
        ("processor_config.json", ("image_seq_length",), 256, "16 embeddings by mm_tokens_per_image"),
        ("config.json", ("mm_tokens_per_image",), 5000, "has 0 embeddings by mm_tokens_per_image"),
        ("config.json", ("text_config", "use_bidirectional_attention"), True, "only causal text is supported"),
        ("config.json", ("image_token_index",), 7, "tokenizer.json has <image_soft_token>"),
        ("processor_config.json", ("image_processor", "size"), {"height": 14, "width": 14}, "an image_size of 112"),
    ],
)
def test_settings_that_are_not_followed(
    checkpoint: Path, tmp_path: Path, file: str, keys: tuple[str, ...], value: Any, said: str
):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    values = json.loads((checkpoint / file).read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=said):
        export_model(tmp_path, tmp_path / "out" / "bundle", prove=False)
