"""What callers pass beside plain texts and images: nothing of it vanishes, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapes
from helpers import run_command
from onnx_vlm.runtime import VLM, InputError, load
from onnx_vlm.runtime.inputs import requests

IMAGE = shapes.draw(shapes.scene(shapes.HELD_OUT))


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def chatting(bundles: Callable[..., Path]) -> VLM:
    return load(bundles("perception_lm"), threads=1)


@pytest.mark.parametrize(
    "prompt",
    [None, 5, b"caption", [None], [5], ["caption", None], [{"role": "user", "content": "a"}, "b"], {}, object()],
)
def test_prompts_that_are_none(prompt: Any):
    with pytest.raises(InputError, match="a prompt is a text or a list of chat messages, not"):
        requests(prompt, None, None, None)


def turn(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": [*parts, {"type": "text", "text": "how many circles"}]}]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "image.png"}}, "its type must be text, image or video"),
        ({"type": "input_image", "image_url": "image.png"}, "its type must be text, image or video"),
        ({"type": ["image"]}, "its type must be"),
        ({"type": {}}, "its type must be"),
        ({"image": "image.png"}, "its type must be"),
        ("image.png", "its type must be"),
        (None, "its type must be"),
        ({"type": "image", "url": "http://host/image.png"}, "the key 'url'; URLs and encoded files are not read"),
        ({"type": "image", "base64": "AAAA"}, "the key 'base64'"),
        ({"type": "text", "text": "a", "image_url": "image.png"}, "the key 'image_url'"),
        ({"type": "video", "url": "http://host/film.mp4"}, '"type": "video"'),
    ],
)
def test_parts_of_messages_that_would_vanish_are_refused(chatting: VLM, part: Any, said: str):
    with pytest.raises(InputError, match=said):
        chatting.generate(turn(part), max_new_tokens=1)


@pytest.mark.parametrize("key", ["image", "path"])
def test_an_image_in_a_message_is_one_beside_it(chatting: VLM, key: str, tmp_path: Path):
    IMAGE.save(tmp_path / "image.png")
    inside = chatting.generate(turn({"type": "image", key: tmp_path / "image.png"}), max_new_tokens=8)
    beside = chatting.generate(turn({"type": "image"}), IMAGE, max_new_tokens=8)
    assert (inside.token_ids, inside.prompt_tokens) == (beside.token_ids, beside.prompt_tokens)


def test_an_image_that_the_template_does_not_write_is_refused(chatting: VLM):
    messages = [{"role": "system", "content": [{"type": "image"}]}, {"role": "user", "content": "how many circles"}]
    with pytest.raises(InputError, match="1 images and videos are given, and the model's chat template writes 0"):
        chatting.generate(messages, [IMAGE])


def test_a_prompt_with_a_surrogate_is_refused(vlm: VLM):
    with pytest.raises(InputError, match="surrogate"):
        vlm.generate("caption \udcff", IMAGE)


@pytest.mark.parametrize("flag", ["--image", "--embedding-folder"])
def test_the_command_refuses_a_path_that_is_too_long(bundle: Path, flag: str):
    done = run_command("generate", bundle, "caption", flag, "a" * 300)
    assert done.returncode == 2
    assert "File name too long" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
