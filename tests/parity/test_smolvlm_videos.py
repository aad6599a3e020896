"""Videos of SmolVLM2 as transformers' processor takes them: which frames, their pixels, and the prompt around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CHECKPOINTS, write_film
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.families import registry
from onnx_vlm.export.families.registry import Recipe
from onnx_vlm.graphs import CheckpointError
from onnx_vlm.graphs.manifest import PixelScaling, Resize, Video
from onnx_vlm.runtime.images import video
from onnx_vlm.runtime.text.prompt import Prompts
from published_processors import assert_same_pixels
from transformers import AutoProcessor, SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata, load_video

TILE_TOKENS = 4
VIDEO, TEXT = {"type": "video"}, {"type": "text", "text": "What happens?"}


def files(folder: Path, **changed: Any) -> Path:
    """The files of a small SmolVLM2's processor, with these settings of videos."""
    for path in (CHECKPOINTS / "smolvlm").iterdir():
        if path.suffix in (".json", ".jinja"):
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").touch()
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["video_processor"] |= changed
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def recipe_of(folder: Path) -> Recipe:
    return registry.find("smolvlm").recipe(Checkpoint(folder))


def prompts_of(folder: Path, recipe: Recipe) -> Prompts:
    """As a bundle has them, with the template that the export writes."""
    (folder / "bundle").mkdir()
    (folder / "bundle" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (folder / "bundle" / "chat_template.jinja").write_text(recipe.chat_template)
    return Prompts(folder / "bundle", recipe.prompt, TILE_TOKENS)


def test_the_same_frames_are_taken():
    random = np.random.default_rng(0)
    tile = Resize(8, 8, PixelScaling("lanczos", 1 / 255, (0.5,) * 3, (0.5,) * 3))
    for _ in range(3000):
        total, rate = int(random.integers(1, 3000)), float(random.choice([1, 5, 10, 23.976, 24, 25, 29.97, 30, 60]))
        frames, taken = int(random.choice([1, 2, 8, 64])), float(random.choice([0.5, 1, 2, 30]))
        metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
        theirs = SmolVLMVideoProcessor(num_frames=frames, fps=taken).sample_frames(metadata)
        ours = video.sample_in_time(total, rate, Video(frames, tile, rate=taken, margin=1.0))
        assert ours == theirs.tolist(), (total, rate, frames, taken)


@pytest.mark.parametrize(("frames", "rate"), [(8, 1), (8, 4), (2, 5)])
def test_a_film_has_the_pixels_and_the_prompt_of_the_processor(tmp_path: Path, frames: int, rate: int):
    folder = files(tmp_path, num_frames=frames, fps=rate)
    film, recipe = write_film(tmp_path / "film.mp4"), recipe_of(folder)
    every, metadata = load_video(str(film), backend="pyav")  # transformers' processor itself needs another decoder
    messages = [{"role": "user", "content": [VIDEO, TEXT]}]
    processor = AutoProcessor.from_pretrained(folder)
    theirs = processor(
        text=processor.apply_chat_template(messages, add_generation_prompt=True),
        videos=[every],
        video_metadata=[metadata],
        do_sample_frames=True,
        add_special_tokens=False,
        return_tensors="np",
    )
    sampled = video.frames(film, recipe.video)
    tiles = video.tiles(sampled, recipe.video)
    assert_same_pixels(tiles, theirs["pixel_values"][0], recipe.video.tile)
    prompt = prompts_of(folder, recipe).encode(messages, [], [tiles], times=[(sampled.seconds, sampled.duration)])
    assert prompt.ids.tolist() == theirs["input_ids"][0].tolist()
    assert prompt.is_image.sum() == len(tiles) * TILE_TOKENS


def test_conversations_are_written_as_the_processor_writes_them(tmp_path: Path):
    folder = files(tmp_path)
    processor, recipe = AutoProcessor.from_pretrained(folder), recipe_of(folder)
    prompts = prompts_of(folder, recipe)
    answer = {"role": "assistant", "content": [{"type": "text", "text": " A circle."}]}
    clip = np.random.default_rng(0).integers(0, 256, (50, 20, 31, 3), np.uint8)[::10]
    for messages, videos in (
        ([{"role": "user", "content": [TEXT]}], 0),
        ([{"role": "user", "content": [TEXT, VIDEO]}, answer, {"role": "user", "content": [TEXT]}], 1),
        ([{"role": "user", "content": [VIDEO, VIDEO, TEXT]}], 2),
    ):
        sampled = video.frames(clip, recipe.video)
        given = [video.tiles(sampled, recipe.video)] * videos
        ours = prompts.encode(messages, [], given, times=[(sampled.seconds, sampled.duration)] * videos)
        theirs = processor(
            text=processor.apply_chat_template(messages, add_generation_prompt=True),
            videos=[clip] * videos or None,
            add_special_tokens=False,
            return_tensors="np",
        )
        assert ours.ids.tolist() == theirs["input_ids"][0].tolist()


def test_older_settings_of_videos(tmp_path: Path):
    older = {"max_frames": 16, "fps": 2, "video_size": {"longest_edge": 90}}
    video = recipe_of(files(tmp_path, video_sampling=older)).video
    assert (video.frames, video.rate, video.tile.longest_edge) == (16, 2, 90)


def test_settings_that_name_no_number_of_frames_take_no_videos(tmp_path: Path):
    recipe = recipe_of(files(tmp_path, num_frames=None))
    assert (recipe.video, recipe.prompt.video, recipe.prompt.frames, recipe.chat_template) == (None,) * 4


def test_frames_of_another_size_than_tiles_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"max_image_size is .*; give a longest_edge of 56"):
        recipe_of(files(tmp_path, max_image_size={"longest_edge": 28}))
