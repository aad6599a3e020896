"""Models that make vectors against transformers: every vector of pages and queries, alone and in ragged batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
import pytest
import torch
from helpers import CHECKPOINTS, PHOTOGRAPHS
from onnx_vlm.export import export_model
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.families import colpali
from onnx_vlm.runtime import late_interaction, load
from onnx_vlm.runtime.images.tiles import tiles
from onnx_vlm.runtime.text.prompt import Prompts
from PIL import Image
from random_rows import COLPALI
from source import TOLERANCE, relative_error
from transformers import AutoProcessor, ColPaliForRetrieval, ColPaliProcessor

QUERIES = [
    "a red circle",
    "",
    "Where are the figures of the third quarter, and what do they say of  the second?",
    "é <pad>",
]


class Source:
    """A checkpoint in transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = ColPaliForRetrieval.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, **asked: Any) -> tuple[list[np.ndarray], torch.Tensor]:
        """The vectors of each row that its mask keeps; and those of the padded batch."""
        inputs = {name: values for name, values in self.processor(**asked).items() if name != "labels"}
        vectors = self.model(**inputs).embeddings
        kept = inputs["attention_mask"].bool().numpy()
        return [row[mask] for row, mask in zip(vectors.numpy(), kept)], vectors

    def scores(self, queries: torch.Tensor, pages: torch.Tensor) -> np.ndarray:
        return self.processor.score_retrieval(queries, pages).numpy()


def pictures(seed: int) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (*random.integers(1, 200, 2), 3), np.uint8)) for _ in range(3)]


def same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    errors = [relative_error(*pair) for pair in zip(ours, theirs, strict=True)]
    assert max(errors) < TOLERANCE, errors


def check(checkpoint: Path, bundle: Path, threads: int, images: list[Image.Image]) -> None:
    source, vlm = Source(checkpoint), load(bundle, threads=threads)
    queries = vlm.embed(queries=QUERIES)
    assert [*vlm.placement] == ["decoder"], "queries load no graph for images"
    their_queries, padded_queries = source.embed(text=QUERIES)
    same(queries, their_queries)
    for query, text in zip(queries, QUERIES):
        same([query], source.embed(text=[text])[0])
        same([query], vlm.embed(queries=text))
    pages = vlm.embed(images)
    their_pages, padded_pages = source.embed(images=images)
    same(pages, their_pages)
    same(pages[:1], vlm.embed(images[0]))
    assert np.abs(pages[0] - pages[1]).max() > 0.1, "vectors tell pages apart"
    assert np.abs(np.linalg.norm(np.concatenate([*pages, *queries]), axis=1) - 1).max() < 1e-5
    ours, theirs = late_interaction(queries, pages), source.scores(padded_queries, padded_pages)
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize(("seed", "name"), list(enumerate(COLPALI)), ids=list(COLPALI))
def test_vectors_are_those_of_the_source(tmp_path: Path, threads: int, seed: int, name: str):
    make, options = COLPALI[name]
    checkpoint = make(tmp_path / "checkpoint", seed=seed, **options)
    bundle = export_model(
        checkpoint, tmp_path / "bundle", prove=False, target="portable" if seed == 1 else "onnxruntime"
    )
    check(checkpoint, bundle, threads, pictures(seed))


def test_the_trained_checkpoint_gives_the_vectors_of_the_source(bundles: Callable[..., Path], threads: int):
    check(CHECKPOINTS / "colpali", bundles("colpali"), threads, pictures(9))


@pytest.mark.needs("processors/paligemma-3b-224")
def test_pages_and_queries_of_the_published_vocabulary(assets: Path, tmp_path: Path):
    """Ids and pixels at 448 pixels, as ColPali's processor makes them of the published tokenizer."""
    parts = AutoProcessor.from_pretrained(assets / "processors" / "paligemma-3b-224")
    parts.image_processor.size = {"height": 448, "width": 448}
    parts.image_processor.image_seq_length = 1024
    processor = ColPaliProcessor(parts.image_processor, parts.tokenizer)
    processor.save_pretrained(tmp_path)
    vision = {"model_type": "siglip_vision_model", "image_size": 448, "patch_size": 14}
    inside = {"model_type": "paligemma", "image_token_index": processor.image_token_id, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "colpali", "vlm_config": inside}))
    (tmp_path / "model.safetensors").touch()
    recipe = colpali.recipe(Checkpoint(tmp_path))
    prompts = Prompts(tmp_path, recipe.prompt, 1024)
    for text in (*QUERIES, "  Umsätze 2023?  ", "日本の<loc0012>", "a\nb", "<bos><eos>"):
        theirs = processor(text=[text])["input_ids"][0].numpy()
        assert prompts.encode_query(text, recipe.vectors).ids.tolist() == theirs.tolist(), text
    for path in PHOTOGRAPHS[:3]:
        image = Image.open(path)
        theirs = processor(images=image)
        page = tiles(image.convert("RGB"), recipe.image)
        assert prompts.encode(recipe.vectors.page, [page]).ids.tolist() == theirs["input_ids"][0].tolist()
        assert np.abs(page - theirs["pixel_values"].numpy()).max() < 1e-6
