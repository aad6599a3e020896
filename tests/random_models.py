"""Random checkpoints of small and odd configurations, whose answers change with every picture, prompt and position."""

from __future__ import annotations

import json
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
    crops: bool = False,
    **text: Any,
) -> Path:
    """Gemma 3, with the processor in `files`, on images of side x side patches; every `pattern`th layer is full."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(files)
    size, tokens = 14 * side, (side // pooling) ** 2
    processor.image_processor.size = {"height": size, "width": size}
    if crops:
        processor.image_processor.do_pan_and_scan = True
        processor.image_processor.pan_and_scan_min_crop_size = 20
        processor.image_processor.pan_and_scan_max_num_crops = 3
        processor.image_processor.pan_and_scan_min_ratio_to_activate = 1.3
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
    for part in (processor.image_processor, None if idefics else processor.video_processor):
        for name, value in sizes.items():
            setattr(part, name, value) if part else None
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
        chat_template=(CHECKPOINTS / "llava" / "chat_template.jinja").read_text(),
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
