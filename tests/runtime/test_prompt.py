"""Prompts of the real tokenizer against published ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx_vlm.graphs.manifest import Prompt
from onnx_vlm.runtime import InputError
from onnx_vlm.runtime.prompt import Prompts

FORMAT = Prompt(
    image="<image>", image_token_id=257152, image_tokens=256, before="<bos>", after="\n", needs_image=True
)  # fmt: skip


@pytest.fixture(scope="module")
def prompts(assets: Path) -> Prompts:
    return Prompts(assets / "processors" / "paligemma-3b-224" / "tokenizer.json", FORMAT)


def test_published_prompts(prompts: Prompts):
    assert prompts.encode("", 1).tolist() == [257152] * 256 + [2, 108]
    assert len(prompts.encode("answer en Where is the cow standing?", 1)) == 266
    assert len(prompts.encode("What is on the flower?", 1)) == 264
    assert len(prompts.encode("Describe the images.", 2)) == 518


def test_published_tokenizer_vectors(prompts: Prompts, assets: Path):
    vectors = json.loads((assets / "expected" / "transformersjs_gemma_tokenization.json").read_text())
    for name, vector in vectors["Xenova/gemma2-tokenizer"].items():
        ids = prompts.tokenizer.encode(vector["text"], add_special_tokens=False).ids
        assert [2, *ids] == vector["ids"], name
        assert prompts.tokenizer.decode(vector["ids"], skip_special_tokens=False) == vector["decoded"], name


def test_answers_keep_locations_and_lose_special_tokens(prompts: Prompts):
    answer = "<loc0051><loc0309><loc0708><loc0646> shoe"
    ids = prompts.tokenizer.encode(answer, add_special_tokens=False).ids
    assert len(ids) == 5
    assert prompts.decode([*ids, 1]) == answer


def test_placeholders_in_a_prompt_are_refused(prompts: Prompts):
    with pytest.raises(InputError, match="<image>"):
        prompts.encode("<image>caption", 1)
    with pytest.raises(InputError, match="at least one"):
        prompts.encode("caption", 0)
