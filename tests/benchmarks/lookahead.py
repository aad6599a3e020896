"""Tokens a second with guesses and without, for answers of known text: what repeats gains, what does not loses little.

    python tests/benchmarks/lookahead.py BUNDLE [--rounds N]

BUNDLE is of a causal model, random weights will do: the search takes the ids of the texts below, whatever the logits
are, so each step costs what it would cost if the model had written that text. Rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from onnx_vlm.runtime import load
from onnx_vlm.runtime.generation.decode import Force, decode
from onnx_vlm.runtime.generation.lookahead import Earlier, Guesses, drive_ahead
from onnx_vlm.runtime.generation.steps import drive
from onnx_vlm.runtime.pipeline import Pipeline
from onnx_vlm.runtime.stream import fold
from onnx_vlm.runtime.text.json_answers import JsonConstraint, JsonVocabulary

GOODS = ("Milk 1 l", "Rye bread", "Butter", "Six eggs", "Olive oil", "Basmati rice", "Green tea", "Dark chocolate")
LINES = [
    {"description": name, "quantity": 1 + index % 3, "unit_price": f"{1.29 + 0.83 * index:.2f}", "currency": "EUR"}
    for index, name in enumerate(GOODS)
]
BOXES = [
    {"label": label, "bbox": [31 + 97 * index, 12 + 53 * index, 118 + 97 * index, 85 + 61 * index]}
    for index, label in enumerate(("cup", "plate", "fork", "cup", "plate", "knife", "cup", "bowl"))
]
PROSE = (
    "A narrow street climbs between whitewashed houses towards a chapel on the hill. Two women in dark coats talk"
    " beside a blue door, while a boy balances on the kerb with a paper kite under his arm. Behind them, laundry moves"
    " in the wind and the sea lies flat under a pale afternoon sky. An old van, its headlight broken, has stopped where"
    " the cobbles turn to gravel; somebody has written a number in the dust of its window."
)
RECEIPT = json.dumps({"merchant": "Corner shop", "date": "2026-03-14", "lines": LINES})
SECOND = RECEIPT.replace("Corner shop", "Station kiosk").replace("2026-03-14", "2025-11-02").replace("Rye", "Oat")
TEXTS = {
    "JSON of a receipt": (None, RECEIPT),
    "JSON of the next one": (RECEIPT, SECOND),
    "boxes as JSON": (None, json.dumps(BOXES)),
    "prose": (None, PROSE),
}
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def schema(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


LINE = schema(description=TEXT, quantity=NUMBER, unit_price=TEXT, currency=TEXT)
BOX = schema(label=TEXT, bbox={"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4})
SCHEMAS = {
    "receipt, by its schema": schema(merchant=TEXT, date=TEXT, lines={"type": "array", "items": LINE}),
    "boxes, by their schema": {"type": "array", "items": BOX},
}
TEXTS |= {"receipt, by its schema": (None, RECEIPT), "boxes, by their schema": (None, json.dumps(BOXES))}
PROMPT = "Describe the picture."


def seconds(
    pipeline: Pipeline, ids: Sequence[int], earlier: Earlier | None, forced: Force | None = None
) -> tuple[float, int]:
    """Seconds and steps of an answer, after its prompt; with guesses if `earlier` is given."""
    prompt = pipeline.prompts.encode(PROMPT, [])
    logits, run = pipeline.engine.start([pipeline.engine.embed(prompt)], len(ids))
    answer: list[int] = []

    def next_id(index: int, logits: np.ndarray) -> int:
        return ids[len(answer)]

    def ends(so_far: list[int]) -> bool:
        answer[:] = so_far
        return False

    logits = np.asarray(logits)
    search = decode(logits, [prompt.ids], next_id, [], ends, len(ids), forced=forced)
    steps = 0

    def counted(method):
        def call(*arguments, **named):
            nonlocal steps
            steps += 1
            return method(*arguments, **named)

        return call

    start = time.perf_counter()
    if earlier is None:
        (chosen,) = fold(drive(search, counted(run.step)))
    else:
        run.run_each = counted(run.run_each)
        (chosen,) = fold(drive_ahead(search, run, Guesses(prompt.ids.tolist(), earlier), len(ids)))
    assert [token.id for token in chosen] == list(ids)
    return time.perf_counter() - start, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    pipeline = load(options.bundle, provider="cpu", threads=options.threads).pipeline
    vocabulary = JsonVocabulary(
        pipeline.prompts.tokenizer, pipeline.manifest.vocab, pipeline.manifest.generation.eos_token_ids
    )
    print("| answer | tokens | plain | with guesses | ratio | steps |\n|---|---|---|---|---|---|")
    for name, (before, text) in TEXTS.items():
        ids = pipeline.prompts.ids(text)
        forced = None
        if name in SCHEMAS:
            forced = JsonConstraint(vocabulary, json.dumps(SCHEMAS[name])).forced
        plain, ahead = [], []
        for _ in range(options.rounds):
            earlier = Earlier()
            if before is not None:
                earlier.add(pipeline.prompts.ids(before))
            plain.append(seconds(pipeline, ids, None)[0])
            taken, steps = seconds(pipeline, ids, earlier, forced)
            ahead.append(taken)
        rates = [(len(ids) - 1) / median(times) for times in (plain, ahead)]
        row = f"{len(ids)} | {rates[0]:.1f} tok/s | {rates[1]:.1f} tok/s | {rates[1] / rates[0]:.2f} | {steps}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
