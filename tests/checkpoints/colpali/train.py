"""Train the tiny ColPali checkpoint in this folder, print how often it finds the right page and save it.

    python tests/checkpoints/colpali/train.py [--steps N] [--output FOLDER]

It starts from the trained checkpoint in ../paligemma, whose vision tower stays as it is. Takes about ten minutes on one
core and needs torch and transformers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import onnx_vlm.export  # noqa: E402, F401 (makes torchvision importable, which transformers imports)
import shapes  # noqa: E402
import training  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    PaliGemmaForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402

WIDTH = 32  #: numbers of a vector
PAGES = 32  #: pages of a batch, and of a set of held-out pages; their captions differ
SCENES = 8_000
TEMPERATURE = 0.05

Tensors = dict[str, torch.Tensor]


def start_model() -> tuple[ColPaliForRetrieval, ColPaliProcessor]:
    """The trained PaliGemma with a new projection, and ColPali's processor over PaliGemma's."""
    trained = PaliGemmaForConditionalGeneration.from_pretrained(HERE.parent / "paligemma", dtype=torch.float32)
    parts = AutoProcessor.from_pretrained(HERE.parent / "paligemma")
    config = ColPaliConfig(vlm_config=trained.config, embedding_dim=WIDTH)
    config._attn_implementation = "eager"
    model = ColPaliForRetrieval(config)
    model.vlm = trained.model
    training.spread(model.embedding_proj_layer)
    return model, ColPaliProcessor(parts.image_processor, parts.tokenizer)


def distinct(order: Sequence[int], captions: Sequence[str]) -> list[int]:
    """The first of `order` whose captions differ, `PAGES` of them."""
    chosen: dict[str, int] = {}
    for index in order:
        chosen.setdefault(captions[index], index)
        if len(chosen) == PAGES:
            break
    return list(chosen.values())


def scores(queries: torch.Tensor, pages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over a query's tokens of the best similarity, (queries, pages)."""
    best = torch.einsum("qnd,ptd->qpnt", queries, pages).amax(-1)
    return (best * mask[:, None]).sum(-1) / mask.sum(-1)[:, None]


def vectors(model: ColPaliForRetrieval, inputs: Tensors, features: torch.Tensor | None = None) -> torch.Tensor:
    """The vectors (rows, tokens, width); `features` (rows, patches, width) are those of the vision tower."""
    images = {}
    if features is not None:
        embeds = model.vlm.multi_modal_projector(features)
        images = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=embeds)}}
    return model(**inputs, **images, use_cache=False).embeddings


@torch.no_grad()
def see(model: ColPaliForRetrieval, pictures: training.Pictures) -> torch.Tensor:
    """What the vision tower makes of all pictures, (pictures, patches, width)."""
    parts = np.array_split(np.arange(len(pictures.asked)), len(pictures.asked) // 100)
    tower = model.vlm.vision_tower
    return torch.cat([tower(pictures.normalised(part, [0.5] * 3, [0.5] * 3)).last_hidden_state for part in parts])


def train(model: ColPaliForRetrieval, processor: ColPaliProcessor, steps: int) -> None:
    """Let each page of a batch score best for its caption, and each caption for its page."""
    random = np.random.default_rng(0)
    pictures = training.Pictures.draw(56, 4, shapes.questions, SCENES)
    captions = [questions[0].answer for questions in pictures.asked]
    features = see(model, pictures)
    page = dict(processor(images=shapes.draw(shapes.scene(0))))
    page = {name: values for name, values in page.items() if name not in ("pixel_values", "labels")}

    def contrast() -> training.Losses:
        chosen = distinct(random.permutation(SCENES)[: 40 * PAGES], captions)
        asked = dict(processor(text=[captions[index] for index in chosen]))
        pages = {name: values.expand(len(chosen), -1) for name, values in page.items()}
        similar = scores(
            vectors(model, asked), vectors(model, pages, features[torch.tensor(chosen)]), asked["attention_mask"]
        )
        right = torch.arange(len(chosen))
        similar = similar / TEMPERATURE
        both = [torch.nn.functional.cross_entropy(table, right) for table in (similar, similar.T)]
        return {"contrast": sum(both) / 2}

    model.train()
    trained = [*model.vlm.multi_modal_projector.parameters(), *model.vlm.language_model.parameters()]
    training.optimise({1e-3: trained, 3e-3: [*model.embedding_proj_layer.parameters()]}, steps, contrast)


@torch.inference_mode()
def evaluate(model: ColPaliForRetrieval, processor: ColPaliProcessor, sets: int = 20) -> list[bool]:
    """For each page of held-out sets whether its caption finds it first."""
    model.eval()
    right = []
    for number in range(sets):
        scenes = [shapes.scene(shapes.HELD_OUT + 500 * number + index) for index in range(500)]
        captions = [shapes.caption(scene) for scene in scenes]
        chosen = distinct(range(500), captions)
        pages = processor(images=[shapes.draw(scenes[index]) for index in chosen])
        queries = processor(text=[captions[index] for index in chosen])
        pages.pop("labels")
        found = processor.score_retrieval(model(**queries).embeddings, model(**pages).embeddings).argmax(-1)
        right += (found == torch.arange(len(chosen))).tolist()
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, processor = start_model()
    started = time.monotonic()
    train(model, processor, options.steps)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    model.config.vlm_config.name_or_path = ""  # the folder that the model began from, as this machine calls it
    model.to(torch.bfloat16).save_pretrained(options.output)
    processor.save_pretrained(options.output)
    saved = ColPaliForRetrieval.from_pretrained(options.output, dtype=torch.float32)
    training.report({"pages": evaluate(saved, AutoProcessor.from_pretrained(options.output))})


if __name__ == "__main__":
    main()
