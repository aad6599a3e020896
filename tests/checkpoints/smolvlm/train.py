"""Train the tiny SmolVLM checkpoint in this folder, print its held-out accuracy and save it.

    python tests/checkpoints/smolvlm/train.py [--seeing-steps N] [--steps N] [--output FOLDER]

Takes about ten minutes on two cores and needs torch, transformers, torchvision, tokenizers and num2words.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import shapes  # noqa: E402
import training  # noqa: E402
from training import BATCH, Losses, PatchHead  # noqa: E402
from transformers import (  # noqa: E402
    GenerationConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

TILE, PATCH, SCALE, GRID = 56, 14, 2, 2
SIDE = TILE // PATCH
TILE_TOKENS = (SIDE // SCALE) ** 2
SCENES = 10_000
QUESTIONS = 3  #: of a scene: what there is, and two counts
START, END, AROUND, IMAGE = "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"
CELLS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SPECIAL = ("<|endoftext|>", START, "<|im_end|>", AROUND, IMAGE, END, "<global-img>", *CELLS)
TEMPLATE = (
    START + "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '" + IMAGE + "' }}{% endfor %}"
    "{{ '" + END + "\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_processor() -> SmolVLMProcessor:
    """The real processor over a small byte-level tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    questions = [question for seed in range(2_000) for question in shapes.chat_questions(shapes.scene(seed))]
    sentences = [
        text for q in questions for text in (f"User:{q.prompt}", f"User: {q.prompt}", f"Assistant: {q.answer}")
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=460, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*sentences, "System: \n\n"], trainer)
    trained.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=START,
        eos_token=END,
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={
            "fake_image_token": AROUND,
            "image_token": IMAGE,
            "end_of_utterance_token": END,
            "global_image_token": "<global-img>",
        },
    )
    sizes = {"size": {"longest_edge": GRID * TILE}, "max_image_size": {"longest_edge": TILE}}
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes, num_frames=8, fps=1),
        image_seq_len=TILE_TOKENS,
        chat_template=TEMPLATE,
    )


def build_model(processor: SmolVLMProcessor) -> SmolVLMForConditionalGeneration:
    """SmolVLM with all its parts, made small: a SigLIP tower, a projector that shuffles pixels, Llama text."""
    tokenizer = processor.tokenizer
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 64 * math.ceil(len(tokenizer) / 64),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            **ids,
        },
        scale_factor=SCALE,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    model = SmolVLMForConditionalGeneration(config)
    for layer in (model.model.connector, *model.model.text_model.layers, model.model.vision_model.encoder):
        training.spread(layer)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 128**-0.5)
    return model


def tiled(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tiles of a scene as the image processor cuts them, (5, size, size, 3) of uint8; what their patches show
    (5, patches, 5); and what their image embeddings are of (5, tokens, 5)."""
    scene = shapes.scene(seed)
    drawn = shapes.draw(scene, *[(112, 168, 224)[seed % 3]] * 2).resize((GRID * TILE, GRID * TILE), Image.LANCZOS)
    cut = np.asarray(drawn).reshape(GRID, TILE, GRID, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    tiles = np.concatenate([cut, np.asarray(drawn.resize((TILE, TILE), Image.LANCZOS))[None]])
    half = shapes.GRID // GRID
    corners = [(top, left) for top in (0, half) for left in (0, half)]
    patches, pooled = (
        np.stack(
            [training.patch_targets(scene, side, top, left, half) for top, left in corners]
            + [training.patch_targets(scene, side)]
        )
        for side in (SIDE, SIDE // SCALE)
    )
    return tiles, patches, pooled


def conversation(processor: SmolVLMProcessor, asked: list[shapes.Question]) -> tuple[list[int], list[bool]]:
    """Ids of a conversation about a picture, and which of them are answers; as the chat template would write it."""
    tokens, tokenizer = IMAGE * TILE_TOKENS, processor.tokenizer
    cells = [[f"{AROUND}<row_{row + 1}_col_{column + 1}>{tokens}" for column in range(GRID)] for row in range(GRID)]
    image = "".join("".join(row) + "\n" for row in cells) + f"\n{AROUND}<global-img>{tokens}{AROUND}"
    before, ids, answers = f"{START}User:{image}", [], []
    for question in asked:
        ids += tokenizer(f"{before}{question.prompt}{END}\nAssistant:", add_special_tokens=False)["input_ids"]
        answers += [False] * (len(ids) - len(answers))
        ids += tokenizer(f" {question.answer}{END}", add_special_tokens=False)["input_ids"]
        answers += [True] * (len(ids) - len(answers))
        before = "\nUser: "
    return ids, answers


def train(
    model: SmolVLMForConditionalGeneration, processor: SmolVLMProcessor, seeing_steps: int, steps: int, scenes: int
) -> None:
    """First the vision tower learns to see, then the rest of the model learns to answer from what it sees."""
    started = time.monotonic()
    with ProcessPoolExecutor(2) as pool:
        tiles, patches, pooled = map(np.stack, zip(*pool.map(tiled, range(scenes), chunksize=256)))
    print(f"{scenes} pictures drawn in {time.monotonic() - started:.0f} s", flush=True)
    random = np.random.default_rng(0)
    connector, tower = model.model.connector, model.model.vision_model
    head, pooled_head = (PatchHead(config.hidden_size) for config in (tower.config, model.config.text_config))

    def see(pixels: np.ndarray) -> torch.Tensor:
        """What the tower sees in tiles (tiles, size, size, 3) of uint8: (tiles, patches, width)."""
        return tower(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).last_hidden_state

    def seeing() -> Losses:
        chosen = random.integers(0, scenes, BATCH)
        features = see(tiles[chosen].reshape(-1, TILE, TILE, 3))
        return {
            "patches": head.loss(features, torch.from_numpy(patches[chosen]).flatten(0, 1)),
            "pooled": pooled_head.loss(connector(features), torch.from_numpy(pooled[chosen]).flatten(0, 1)),
        }

    def answering() -> Losses:
        chosen = random.integers(0, scenes, BATCH)
        questions = [shapes.chat_questions(shapes.scene(int(seed)))[:QUESTIONS] for seed in chosen]
        rows = [conversation(processor, [some[i] for i in random.permutation(QUESTIONS)]) for some in questions]
        embeds = connector(seen[chosen].flatten(0, 1).float())
        handed_on = pooled_head.loss(embeds, torch.from_numpy(pooled[chosen]).flatten(0, 1))
        ids, labels = training.padded([(ids, []) for ids, _ in rows], model.config.text_config.pad_token_id)
        for target, given, (row, answers) in zip(labels, ids, rows):
            target[: len(row)] = torch.where(torch.tensor(answers), given[: len(row)], -100)
        inputs = model.get_input_embeddings()(ids)
        inputs = inputs.masked_scatter((ids == processor.image_token_id)[..., None], embeds)
        loss = training.answer_loss(
            labels, lambda kept: model(inputs_embeds=inputs, use_cache=False, logits_to_keep=kept).logits
        )
        return {"answers": loss / (labels >= 0).sum(), "pooled": handed_on}

    model.train()
    heads = [*head.parameters(), *pooled_head.parameters()]
    training.optimise({1.6e-3: [*tower.parameters(), *connector.parameters(), *heads]}, seeing_steps, seeing)
    with torch.no_grad():  # the tower is not trained further
        seen = torch.stack([see(some).bfloat16() for some in tiles])
    handing_on = [*connector.parameters(), *pooled_head.parameters()]
    training.optimise({4e-4: handing_on, 4e-3: [*model.model.text_model.parameters()]}, steps, answering)


@torch.inference_mode()
def evaluate(
    model: SmolVLMForConditionalGeneration, processor: SmolVLMProcessor, pictures: int
) -> dict[str, list[bool]]:
    """Held-out questions answered right or wrong, per task."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + pictures):
        scene = shapes.scene(seed)
        for question in shapes.chat_questions(scene)[:QUESTIONS]:
            content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=text, images=[shapes.draw(scene)], return_tensors="pt", add_special_tokens=False)
            answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(answer, skip_special_tokens=True)
            right.setdefault(question.task, []).append(text == question.answer)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing-steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    started = time.monotonic()
    train(model, processor, options.seeing_steps, options.steps, options.scenes)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    model = model.to(torch.bfloat16)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
        cache_implementation=None,
    )
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    saved = SmolVLMForConditionalGeneration.from_pretrained(options.output, dtype=torch.float32)
    training.report(evaluate(saved, processor, 200))


if __name__ == "__main__":
    main()
