"""Processors with the settings that each family publishes, in our hands and in those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
from helpers import CHECKPOINTS
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.families import registry
from onnx_vlm.export.families.registry import Recipe
from onnx_vlm.graphs.manifest import ImageRecipe
from PIL import Image
from transformers import AutoProcessor

PALIGEMMA, PERCEPTION_LM, KOSMOS2 = "paligemma-3b-224", "perception-lm-1b", "kosmos-2-patch14-224"
SMOLVLM = "smolvlm-256m"
TRAINED = {PALIGEMMA: "paligemma2", PERCEPTION_LM: "perception_lm", KOSMOS2: "kosmos2", SMOLVLM: "smolvlm"}
TILE_TOKENS = {PALIGEMMA: 256, PERCEPTION_LM: 256, KOSMOS2: 64, SMOLVLM: 64}

SCALED = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
#: processor_config.json of google/paligemma-3b-pt-224, facebook/Perception-LM-1B, microsoft/kosmos-2-patch14-224 and
#: HuggingFaceTB/SmolVLM-256M-Instruct.
SETTINGS: dict[str, dict[str, Any]] = {
    PALIGEMMA: {
        "processor_class": "PaliGemmaProcessor",
        "image_processor": SCALED
        | {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 224, "width": 224},
            "image_seq_length": 256,
        },
    },
    PERCEPTION_LM: {
        "processor_class": "PerceptionLMProcessor",
        "patch_size": 14,
        "pooling_ratio": 2,
        "image_processor": SCALED
        | {
            "image_processor_type": "PerceptionLMImageProcessor",
            "size": {"height": 448, "width": 448},
            "tile_size": 448,
            "max_num_tiles": 36,
            "max_frame_tiles": 1,
            "vision_input_type": "thumb+tile",
        },
        "video_processor": SCALED
        | {
            "video_processor_type": "PerceptionLMVideoProcessor",
            "size": {"height": 448, "width": 448},
            "do_center_crop": False,
            "return_metadata": False,
        },
    },
    KOSMOS2: {
        "processor_class": "Kosmos2Processor",
        "num_patch_index_tokens": 1024,
        "image_processor": SCALED
        | {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": 224, "width": 224},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    },
    SMOLVLM: {
        "processor_class": "Idefics3Processor",
        "image_seq_len": 64,
        "image_processor": SCALED
        | {
            "image_processor_type": "Idefics3ImageProcessor",
            "resample": 1,
            "size": {"longest_edge": 2048},
            "max_image_size": {"longest_edge": 512},
            "do_image_splitting": True,
            "do_pad": True,
        },
    },
}
#: Names whose vocabularies, too, may be at hand.
WITH_VOCABULARY = (PALIGEMMA, PERCEPTION_LM, KOSMOS2)
#: What config.json says beside the published vocabularies.
CONFIGS: dict[str, dict[str, Any]] = {
    PALIGEMMA: {
        "model_type": "paligemma",
        "image_token_index": 257152,
        "text_config": {"model_type": "gemma", "vocab_size": 257216, "hidden_size": 2048},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14},
    },
    PERCEPTION_LM: {
        "model_type": "perception_lm",
        "projector_pooling_ratio": 2,
        "vision_use_cls_token": True,
        "text_config": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16},
        "vision_config": {"model_type": "timm_wrapper", "architecture": "vit_pe_lang_large_patch14_448"},
    },
    KOSMOS2: {"model_type": "kosmos-2"},
}


class Processor:
    """A folder with a processor's files: the published settings, and a tokenizer.

    Args:
        name: whose settings.
        folder: where the files go, an empty folder.
        published: a folder of published processor files; without it the tokenizer is that of a trained checkpoint.
    """

    def __init__(self, name: str, folder: Path, published: Path | None = None) -> None:
        self.name, self.folder = name, folder
        files = published or CHECKPOINTS / TRAINED[name]
        for path in (*files.glob("tokenizer*.json"), *files.glob("chat_template.jinja")):
            (folder / path.name).write_bytes(path.read_bytes())
        config = CONFIGS[name] if published else json.loads((files / "config.json").read_text())
        if name == PALIGEMMA:
            config["vision_config"]["image_size"] = 224
        if name == SMOLVLM:
            config["model_type"] = "idefics3"
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "processor_config.json").write_text(json.dumps(SETTINGS[name]))
        (folder / "model.safetensors").touch()

    @property
    def behaviour(self) -> Recipe:
        """What the export makes of the files."""
        checkpoint = Checkpoint(self.folder)
        return registry.find(checkpoint.config["model_type"]).recipe(checkpoint)

    @property
    def source(self) -> Any:
        """The processor that transformers makes of them."""
        return AutoProcessor.from_pretrained(self.folder)

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the settings."""
        path = self.folder / "processor_config.json"
        settings = json.loads(path.read_text())
        change(settings)
        path.write_text(json.dumps(settings))


def assert_same_pixels(ours: np.ndarray, theirs: np.ndarray, recipe: ImageRecipe) -> None:
    """Every grey level the same; the values then differ by the rounding of one float32 operation."""
    std = np.asarray(recipe.pixels.std)[:, None, None]
    levels = np.abs(ours.astype(np.float64) - theirs) * std / recipe.pixels.rescale_factor
    assert ours.shape == theirs.shape
    assert levels.max() < 1e-3, f"{levels.max():.3f} grey levels apart"


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A random image."""
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "P, transparent":
        image = image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = image.getpixel((0, 0))
        return image
    return image.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else image.convert(mode)
