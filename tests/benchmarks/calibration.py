"""What rounding to 4 bits loses with and without calibration, on held-out pictures: a table.

    python tests/benchmarks/calibration.py [--pictures N] [--held-out N] [--blocks N,N] [NAME]...

Calibrates on scenes that the checkpoints were trained on. Loss is taken from the runtime's logits before each token of
the float32 bundle's answers: the relative error of the centred logits, the mean KL divergence of the next token's
distribution, and the share of positions where the likeliest token is the same. "random" is a random model whose decoder
has 15 million weights, on random pictures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]
import numpy as np  # noqa: E402
import random_models  # noqa: E402
import shapes  # noqa: E402
from held_out import FAMILIES, shares  # noqa: E402
from onnx_vlm.export import export_model  # noqa: E402
from onnx_vlm.runtime import VLM, load  # noqa: E402
from onnx_vlm.runtime.inference.stages import Loaded  # noqa: E402
from onnx_vlm.runtime.inputs import Request  # noqa: E402
from PIL import Image  # noqa: E402

QUESTIONS: dict[str, Callable[[shapes.Scene], list[shapes.Question]]] = {
    "perception_lm": shapes.chat_questions,
    "kosmos2": shapes.grounded_questions,
}
Asked = list[tuple[Image.Image, str]]


@dataclass
class Truth:
    """Questions, and the answers and logits of the float32 bundle."""

    asked: Asked
    tokens: list[np.ndarray]
    logits: np.ndarray


def asked(name: str, seeds: range) -> Asked:
    """Scenes with each of their questions; noise with the family's examples for the random model."""
    if name == "random":
        noise = [np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8) for seed in seeds]
        pictures = [Image.fromarray(pixels).resize((112, 112)) for pixels in noise]
        prompts = ("Describe the picture.", "How many circles are there?", "Which colour has the square?")
        return [(picture, prompts[index % len(prompts)]) for index, picture in enumerate(pictures)]
    scenes = [shapes.scene(seed) for seed in seeds]
    return [(shapes.draw(s), q.prompt) for s in scenes for q in QUESTIONS.get(name, shapes.questions)(s)]


def checkpoint(name: str, folder: Path) -> Path:
    if name != "random":
        return TESTS / "checkpoints" / name
    (folder / "random").mkdir()
    return random_models.perception_lm(
        folder / "random", seed=1, tile=112, layers=6, heads=8, kv_heads=4, hidden=512, head_dim=64, vocab=512
    )


def logits(vlm: VLM, questions: Asked, tokens: list[np.ndarray]) -> np.ndarray:
    """The logits (tokens, vocab) before each token of the answers."""
    stages, rows = Loaded(vlm.pipeline.prompts, vlm.pipeline.engine), []
    for (picture, prompt), ids in zip(questions, tokens):
        encoded = vlm.pipeline.encode(Request(prompt, [picture], [], None)).prompt
        rows += stages.answers([encoded], [stages.project(stages.encode(encoded.tiles[0]))], [ids])
    rows = np.concatenate(rows).astype(np.float64)
    return rows - rows.mean(-1, keepdims=True)


def truth(vlm: VLM, questions: Asked) -> Truth:
    answers = [vlm.generate(prompt, picture, max_new_tokens=24).token_ids for picture, prompt in questions]
    tokens = [np.array([*ids, vlm.manifest.generation.eos_token_ids[0]]) for ids in answers]
    return Truth(questions, tokens, logits(vlm, questions, tokens))


def loss(vlm: VLM, true: Truth) -> str:
    ours = logits(vlm, true.asked, true.tokens)
    distance = np.linalg.norm(ours - true.logits) / np.linalg.norm(true.logits)
    likely, theirs = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (true.logits, ours))
    divergence = (np.exp(likely) * (likely - theirs)).sum(-1).mean()
    equal = (ours.argmax(-1) == true.logits.argmax(-1)).mean()
    return f"{distance:.3f} | {divergence:.5f} | {equal:.1%}"


def right(name: str, vlm: VLM, pictures: int) -> str:
    if name not in FAMILIES:
        return ""
    seeds = range(shapes.HELD_OUT, shapes.HELD_OUT + pictures)
    judged = [one for seed in seeds for one in FAMILIES[name](vlm, seed)]
    tasks = ", ".join(f"{task} {share:.1%}" for task, share in shares(judged).items())
    return f"{np.mean([is_right for _, _, is_right in judged]):.1%} ({tasks})"


def calibration_folder(name: str, folder: Path, pictures: int) -> Path:
    questions = asked(name, range(pictures))
    every = max(1, len(questions) // pictures)
    folder.mkdir()
    chosen = [questions[index * every + index % every] for index in range(pictures)]
    for index, (picture, _) in enumerate(chosen):
        picture.save(folder / f"{index:04d}.png")
    (folder / "prompts.txt").write_text("\n".join(prompt for _, prompt in chosen), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*FAMILIES, "random"], metavar="NAME")
    parser.add_argument("--pictures", default="32")
    parser.add_argument("--held-out", type=int, default=50)
    parser.add_argument("--blocks", default="128,32")
    options = parser.parse_args()
    print("| checkpoint | block | calibrated on | logits | KL | equal tokens | right |\n|---|---|---|---|---|---|---|")
    for name in options.names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            source = checkpoint(name, folder)
            held_out = asked(name, range(shapes.HELD_OUT, shapes.HELD_OUT + options.held_out))
            whole = load(export_model(source, folder / "whole", prove=False))
            true = truth(whole, held_out)
            print(f"| {name} | | float32 | 0 | 0 | 100% | {right(name, whole, options.held_out)} |", flush=True)
            for block in map(int, options.blocks.split(",")):
                for pictures in (0, *map(int, options.pictures.split(","))):
                    given = folder / f"pictures{pictures}"
                    if pictures and not given.exists():
                        calibration_folder(name, given, pictures)
                    bundle = export_model(
                        source,
                        folder / "bundle",
                        precision="int4",
                        block_size=block,
                        calibrate=given if pictures else None,
                        overwrite=True,
                        prove=False,
                    )
                    vlm = load(bundle)
                    figures = f"{loss(vlm, true)} | {right(name, vlm, options.held_out)}"
                    print(f"| {name} | {block} | {pictures or 'nothing'} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
