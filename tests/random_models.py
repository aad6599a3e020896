"""Random checkpoints of small and odd configurations, whose answers change with every picture, prompt and position."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
import torch
from helpers import CHECKPOINTS
from transformers import (
    AutoProcessor,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

#: The standard deviation of the logits. With much less all tokens are about as likely, and no beam is the best: scores
#: differ by no more than rounding. With this the chosen tokens have a log-probability near -1.
SPREAD = 4.0
LAST_NORMS = ("language_model.norm", "text_model.model.layer_norm", "model.text_model.norm")  #: the ends of their names


def save(folder: Path, model: PreTrainedModel, processor: Any, seed: int) -> Path:
    """Write a checkpoint with weights that tell something, every other one in shards."""
    telling_weights(model)
    model.save_pretrained(folder, max_shard_size="200KB" if seed % 2 else "5GB")
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def telling_weights(model: torch.nn.Module) -> None:
    """Small embeddings and large layers, and a last norm that makes the logits differ by `SPREAD`.

    With the usual initialisation a tiny model repeats its last token, and does not know which token is better.
    """
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            weight.normal_(0, 0.003)
        elif weight.ndim > 1 and not any(part in name for part in ("position_embedding", "pos_embed", "cls_token")):
            weight.normal_(0, 2 / weight[0].numel() ** 0.5)
        elif weight.ndim == 1:
            weight.add_(torch.randn_like(weight) * 0.1)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight[model.config.get_text_config().pad_token_id] = 0  # no real model says <pad>
    (norm,) = (module for name, module in model.named_modules() if name.endswith(LAST_NORMS))
    head = model.get_output_embeddings().weight
    scale = SPREAD / float(head.std() * head.shape[1] ** 0.5)
    shift = 1 if "Gemma" in type(norm).__name__ else 0  # Gemma multiplies by 1 + weight
    norm.weight.copy_((norm.weight + shift) * scale - shift)


def paligemma(
    folder: Path,
    *,
    seed: int,
    image_size: int,
    files: Path = CHECKPOINTS / "paligemma2",
    text: type = Gemma2Config,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    tied: bool = True,
    vocab: int = 1536,
    positions: int = 256,
    **more: Any,
) -> Path:
    """PaliGemma (1 or 2 as `text` has it), with the processor in `files`."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    processor.image_processor.size = {"height": image_size, "width": image_size}
    processor.image_processor.image_seq_length = (image_size // 14) ** 2
    vision = SiglipVisionConfig(
        hidden_size=24 * vision_heads,
        intermediate_size=67,
        num_hidden_layers=2,
        num_attention_heads=vision_heads,
        image_size=image_size,
        patch_size=14,
        vision_use_head=False,
    )
    if text is Gemma2Config:
        more = {"query_pre_attn_scalar": head_dim} | more
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=83,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=positions,
            tie_word_embeddings=tied,
            **more,
        ),
        projection_dim=hidden,
        hidden_size=hidden,
        vocab_size=vocab,
        image_token_index=processor.image_token_id,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    return save(folder, PaliGemmaForConditionalGeneration(config), processor, seed)


def colpali(folder: Path, *, seed: int, width: int = 16, prefixes: dict[str, str] | None = None, **more: Any) -> Path:
    """ColPali on a `paligemma` with these options, with vectors of `width` numbers and the processor's prefixes."""
    paligemma(folder, seed=seed, **more)
    inside = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    parts = AutoProcessor.from_pretrained(folder)
    model = ColPaliForRetrieval(ColPaliConfig(vlm_config=inside.config, embedding_dim=width))
    model.vlm = inside.model
    torch.nn.init.normal_(model.embedding_proj_layer.weight)
    for path in folder.iterdir():
        path.unlink()
    model.save_pretrained(folder)
    ColPaliProcessor(parts.image_processor, parts.tokenizer, **prefixes or {}).save_pretrained(folder)
    return folder


def perception_lm(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "perception_lm",
    tile: int = 28,
    patch: int = 14,
    pooling: int = 1,
    class_token: bool = True,
    tiles: int = 4,
    mode: str = "thumb+tile",
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    depth: int = 2,
    tied: bool = True,
    vocab: int = 512,
    scaled: bool = True,
    positions: int = 512,
) -> Path:
    """PerceptionLM, with the processor in `files`."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"height": tile, "width": tile}
    processor.image_processor.tile_size, processor.image_processor.max_num_tiles = tile, tiles
    processor.image_processor.vision_input_type = mode
    processor.patch_size, processor.pooling_ratio = patch, pooling
    side, tokenizer = tile // patch, processor.tokenizer
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if scaled:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    config = PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_lang_large_patch14_448",
            "do_pooling": True,
            "model_args": {
                "embed_dim": 16 * vision_heads,
                "depth": depth,
                "num_heads": vision_heads,
                "mlp_ratio": 2.5,
                "img_size": [tile, tile],
                "patch_size": patch,
                "ref_feat_shape": [side, side],
                "init_values": 0.1,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "class_token": class_token,
            },
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": positions,
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_use_cls_token=class_token,
        projector_pooling_ratio=pooling,
        tie_word_embeddings=tied,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    return save(folder, PerceptionLMForConditionalGeneration(config), processor, seed)


def gemma3(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "gemma3",
    side: int = 4,
    pooling: int = 2,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    tied: bool = True,
    vocab: int = 448,
    positions: int = 256,
    window: int = 8,
    pattern: int = 3,
    rope: dict[str, Any] | None = None,
    **text: Any,
) -> Path:
    """Gemma 3, with the processor in `files`, on images of side x side patches; every `pattern`th layer is full."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    size, tokens = 14 * side, (side // pooling) ** 2
    processor.image_processor.size = {"height": size, "width": size}
    tokenizer = processor.tokenizer
    processor = type(processor)(
        processor.image_processor, tokenizer, chat_template=processor.chat_template, image_seq_length=tokens
    )
    full = {"rope_type": "default", "rope_theta": 1e6} | (rope or {})
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = Gemma3Config(
        text_config={
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
            "max_position_embeddings": positions,
            "sliding_window": window,
            "sliding_window_pattern": pattern,
            "rope_parameters": {
                "full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "tie_word_embeddings": tied,
            **ids,
            **text,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 24 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": 2,
            "num_attention_heads": vision_heads,
            "image_size": size,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=tokens,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=tied,
        **ids,
    )
    return save(folder, Gemma3ForConditionalGeneration(config), processor, seed)


def kosmos2(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "kosmos2",
    image_size: int = 28,
    picture: tuple[int, int] | None = None,
    latents: int = 5,
    layers: int = 2,
    heads: int = 4,
    hidden: int = 32,
    vision_heads: int = 2,
    tied: bool = True,
    vocab: int = 1216,
    **text: Any,
) -> Path:
    """KOSMOS-2, with the processor in `files`, which makes pictures of `picture` (height, width)."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    height, width = picture or (image_size, image_size)
    processor.image_processor.size = processor.image_processor.crop_size = {"height": height, "width": width}
    config = Kosmos2Config(
        text_config={
            "vocab_size": vocab,
            "embed_dim": hidden,
            "ffn_dim": 83,
            "layers": layers,
            "attention_heads": heads,
            "max_position_embeddings": 256,
            "dropout": 0.0,
            "tie_word_embeddings": tied,
            **text,
        },
        vision_config={
            "hidden_size": 24 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": 2,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": 14,
        },
        latent_query_num=latents,
        tie_word_embeddings=tied,
    )
    return save(folder, Kosmos2ForConditionalGeneration(config), processor, seed)


def smolvlm(
    folder: Path,
    *,
    seed: int,
    files: Path = CHECKPOINTS / "smolvlm",
    idefics: bool = False,
    tile: int = 28,
    image_size: int | None = None,
    patch: int = 14,
    scale: int = 2,
    longest_edge: int = 56,
    splits: bool = True,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    head_dim: int = 16,
    vision_heads: int = 2,
    depth: int = 2,
    tied: bool = True,
    vocab: int = 448,
    positions: int = 1024,
) -> Path:
    """SmolVLM, or Idefics3 with the same shapes, with the processor in `files`. Its tower has positions for images of
    `image_size`, which is that of the tiles if None."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": tile}}
    if idefics:
        processor = Idefics3Processor(
            Idefics3ImageProcessor(**sizes), processor.tokenizer, chat_template=processor.chat_template
        )
    for name, value in sizes.items():
        setattr(processor.image_processor, name, value)
    processor.image_processor.do_image_splitting = splits
    processor.image_seq_len = (tile // patch // scale) ** 2
    tokenizer = processor.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kind, make = (
        (Idefics3Config, Idefics3ForConditionalGeneration)
        if idefics
        else (SmolVLMConfig, SmolVLMForConditionalGeneration)
    )
    config = kind(
        vision_config={
            "hidden_size": 16 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": depth,
            "num_attention_heads": vision_heads,
            "image_size": image_size or tile,
            "patch_size": patch,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": positions,
            "tie_word_embeddings": tied,
            **ids,
        },
        scale_factor=scale,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=tied,
        **ids,
    )
    return save(folder, make(config), processor, seed)


LLAVA_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] != 'system' %}{{- message['role'] | upper + ': ' }}{%- endif %}"
    "{%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>\n' }}{%- endfor %}"
    "{%- if message['content'] is string %}{{- message['content'] + ' ' }}{%- else %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] + ' ' }}{%- endfor %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)


def llama_tokenizer(starts: bool = True) -> LlamaTokenizer:
    """Llama's tokenizer with the words of the tiny PaliGemma 2, which are of the same kind."""
    words = json.loads((CHECKPOINTS / "paligemma2" / "tokenizer.json").read_text())["model"]
    return LlamaTokenizer(
        vocab=words["vocab"],
        merges=[tuple(merge) for merge in words["merges"]],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=starts,
        extra_special_tokens={"image_token": "<image>"},
    )


def llava(
    folder: Path,
    *,
    seed: int,
    tower: str = "clip_vision_model",
    image_size: int = 28,
    shortest_edge: int | None = None,
    strategy: str = "default",
    layer: int | list[int] = -2,
    depth: int = 3,
    vision_heads: int = 2,
    text: str = "llama",
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    tied: bool = False,
    bias: bool = True,
    starts: bool = True,
    vocab: int = 512,
    positions: int = 512,
) -> Path:
    """LLaVA, with a Llama tokenizer that begins texts with a token if `starts`."""
    torch.manual_seed(seed)
    square = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(size={"shortest_edge": shortest_edge or image_size}, crop_size=square)
    processor = LlavaProcessor(
        images if tower == "clip_vision_model" else SiglipImageProcessor(size=square),
        llama_tokenizer(starts),
        patch_size=14,
        vision_feature_select_strategy=strategy,
        chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=int(tower == "clip_vision_model"),
    )
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config={
            "model_type": tower,
            "hidden_size": 24 * vision_heads,
            "intermediate_size": 67,
            "num_hidden_layers": depth,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": 14,
            **({"projection_dim": 16} if tower == "clip_vision_model" else {"vision_use_head": False}),
        },
        text_config={
            "model_type": text,
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 83,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 16,
            "max_position_embeddings": positions,
            "tie_word_embeddings": tied,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **({"sliding_window": None} if text == "mistral" else {}),
        },
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        multimodal_projector_bias=bias,
        image_token_index=processor.image_token_id,
        image_seq_length=(image_size // 14) ** 2,
        tie_word_embeddings=tied,
    )
    return save(folder, LlavaForConditionalGeneration(config), processor, seed)


Row = tuple[Callable[..., Path], dict[str, Any]]

#: One row a model: what makes it, and how it differs from what the function makes otherwise. A row that has a seed of
#: its own would else have two beams, one kept and one dropped, whose scores differ by less than 1e-4.
PALIGEMMA: dict[str, Row] = {
    "smallest": (paligemma, {"image_size": 28, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16}),
    "no groups": (paligemma, {"image_size": 42, "heads": 3, "kv_heads": 3, "hidden": 48}),
    "one key head": (paligemma, {"image_size": 56, "heads": 5, "kv_heads": 1, "hidden": 40, "layers": 3}),
    "wide heads": (paligemma, {"seed": 55, "image_size": 28, "heads": 2, "kv_heads": 1, "head_dim": 64, "layers": 3}),
    "window shorter than the prefix": (paligemma, {"image_size": 84, "layers": 4, "sliding_window": 8}),
    "window that ends during the answer": (paligemma, {"image_size": 28, "layers": 3, "sliding_window": 20}),
    "window of two": (paligemma, {"image_size": 28, "sliding_window": 2}),
    "large picture": (paligemma, {"image_size": 112, "heads": 6, "kv_heads": 3, "hidden": 24, "vision_heads": 3}),
    "224 pixels": (paligemma, {"seed": 56, "image_size": 224, "positions": 1024, "sliding_window": 4096}),
    "448 pixels": (paligemma, {"image_size": 448, "positions": 2048, "sliding_window": 4096}),
    "896 pixels": (paligemma, {"image_size": 896, "positions": 8192, "sliding_window": 4096, "heads": 2}),
    "no soft-capping": (paligemma, {"image_size": 28, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "strong soft-capping": (
        paligemma,
        {"image_size": 42, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 10.0},
    ),
    "head of its own": (paligemma, {"image_size": 28, "tied": False, "vocab": 1531}),
    "odd vocabulary": (paligemma, {"image_size": 28, "vocab": 1777, "query_pre_attn_scalar": 100}),
    "many layers": (paligemma, {"image_size": 28, "layers": 8, "sliding_window": 8}),
    "layers without a pattern": (
        paligemma,
        {
            "image_size": 28,
            "layers": 6,
            "sliding_window": 6,
            "layer_types": [f"{kind}_attention" for kind in ["full", "full", "sliding", "full", "sliding", "sliding"]],
        },
    ),
    "flag that no mask reads": (paligemma, {"image_size": 28, "use_bidirectional_attention": False}),
    "Gemma, one key head": (paligemma, {"text": GemmaConfig, "image_size": 42, "kv_heads": 1}),
    "Gemma, groups": (
        paligemma,
        {"text": GemmaConfig, "image_size": 28, "heads": 6, "hidden": 48, "head_dim": 32, "layers": 3},
    ),
    "Gemma, head of its own": (paligemma, {"text": GemmaConfig, "image_size": 56, "tied": False, "vocab": 1531}),
}
PERCEPTION_LM: dict[str, Row] = {
    "smallest": (perception_lm, {"layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "vision_heads": 1, "depth": 1}),
    "pooling": (perception_lm, {"tile": 56, "pooling": 2, "heads": 6, "kv_heads": 3, "hidden": 48}),
    "no class token": (perception_lm, {"class_token": False, "tiles": 6, "vision_heads": 3, "depth": 3}),
    "many layers": (perception_lm, {"layers": 6, "depth": 7}),
    "one tile": (perception_lm, {"mode": "vanilla", "tile": 42, "patch": 7, "pooling": 3, "kv_heads": 1}),
    "head of its own": (perception_lm, {"tied": False, "vocab": 397, "scaled": False, "layers": 3}),
    "pooling that leaves a rest": (perception_lm, {"tile": 42, "patch": 14, "pooling": 2, "head_dim": 32, "tiles": 1}),
}
KOSMOS2: dict[str, Row] = {
    "smallest": (kosmos2, {"layers": 1, "heads": 1, "hidden": 16, "vision_heads": 1, "latents": 2}),
    "positions interpolated": (kosmos2, {"picture": (56, 42), "latents": 7}),
    "positions interpolated, smaller": (kosmos2, {"image_size": 56, "picture": (28, 28), "hidden": 48, "heads": 6}),
    "embeddings not scaled": (kosmos2, {"scale_embedding": False, "activation_function": "relu", "layers": 3}),
    "head of its own": (kosmos2, {"tied": False, "vocab": 1177, "image_size": 42, "latents": 20}),
}
GEMMA3: dict[str, Row] = {
    "smallest": (gemma3, {"side": 2, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "pattern": 1}),
    "window shorter than an image": (gemma3, {"side": 8, "window": 5}),
    "window of two": (gemma3, {"window": 2, "hidden": 48, "heads": 6, "kv_heads": 3}),
    "window that ends during the answer": (gemma3, {"window": 40, "kv_heads": 1, "layers": 4, "pattern": 2}),
    "no window": (gemma3, {"window": 512, "positions": 1024, "head_dim": 32}),
    "sliding layers alone": (gemma3, {"layers": 2, "pattern": 6, "side": 6, "pooling": 3}),
    "many layers": (gemma3, {"layers": 13, "pattern": 6, "window": 20}),
    "rotary scaling": (gemma3, {"rope": {"rope_type": "linear", "factor": 8.0}, "layers": 6}),
    "pooling that leaves a rest": (gemma3, {"side": 5, "pooling": 2, "vision_heads": 3}),
    "head of its own": (gemma3, {"tied": False, "vocab": 397, "attention_bias": True}),
    "soft-capping that is not used": (gemma3, {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "448 pixels": (gemma3, {"side": 32, "pooling": 4, "window": 40, "positions": 1024}),
}
LLAVA: dict[str, Row] = {
    "smallest": (llava, {"layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "vision_heads": 1, "depth": 2}),
    "no groups": (llava, {"image_size": 56, "kv_heads": 4, "depth": 5, "layers": 4}),
    "features of several layers": (llava, {"layer": [-2, 1, -1], "strategy": "full", "depth": 4, "bias": False}),
    "Mistral, a crop of less": (llava, {"text": "mistral", "image_size": 42, "shortest_edge": 61, "heads": 6}),
    "SigLIP and Qwen 2": (
        llava,
        {
            "tower": "siglip_vision_model",
            "strategy": "full",
            "layer": -1,
            "text": "qwen2",
            "tied": True,
            "starts": False,
        },
    ),
}
COLPALI: dict[str, Row] = {
    "smallest": (colpali, {"image_size": 28, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "width": 5}),
    "Gemma, one key head": (colpali, {"text": GemmaConfig, "image_size": 56, "kv_heads": 1, "layers": 3}),
    "window shorter than a page": (colpali, {"image_size": 84, "layers": 4, "sliding_window": 8, "width": 128}),
    "prefixes of its own": (
        colpali,
        {"image_size": 42, "prefixes": {"query_prefix": "Query: ", "visual_prompt_prefix": "A page:"}},
    ),
    "448 pixels": (colpali, {"text": GemmaConfig, "image_size": 448, "positions": 2048, "heads": 2, "kv_heads": 1}),
}
SMOLVLM: dict[str, Row] = {
    "smallest": (smolvlm, {"layers": 1, "heads": 1, "kv_heads": 1, "hidden": 16, "vision_heads": 1, "depth": 1}),
    "Idefics3": (smolvlm, {"idefics": True, "heads": 6, "kv_heads": 3, "hidden": 48}),
    "grids of up to three by three": (smolvlm, {"longest_edge": 84, "depth": 5, "layers": 5}),
    "tiles with a rest": (smolvlm, {"tile": 64, "longest_edge": 100, "vision_heads": 3}),
    "images are not split": (smolvlm, {"splits": False, "tile": 56, "longest_edge": 80, "kv_heads": 1}),
    "one tile holds every image": (smolvlm, {"tile": 56, "patch": 7, "scale": 4, "longest_edge": 56}),
    "positions that rounding moves": (smolvlm, {"tile": 50, "patch": 2, "scale": 5, "longest_edge": 90}),
    "positions of larger images": (smolvlm, {"tile": 56, "image_size": 98, "longest_edge": 100, "idefics": True}),
    "head of its own": (smolvlm, {"tied": False, "vocab": 397, "head_dim": 32}),
}
