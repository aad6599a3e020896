"""What each precision costs on the trained checkpoints: a table of accuracy, equal answers and size.

    python tests/benchmarks/quality.py [--pictures N] [--precisions NAME...] [--kv-cache] [NAME]...

Takes about a quarter of an hour on two cores. Token agreement is the share of answers that are those of the first
bundle, id for id. With `--kv-cache` each precision is also tried with a KV cache of int8.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]
import numpy as np  # noqa: E402
from held_out import FAMILIES, ask, shares  # noqa: E402
from onnx_vlm.export import export_model  # noqa: E402
from onnx_vlm.graphs import contract  # noqa: E402
from onnx_vlm.runtime import load  # noqa: E402

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")


def weights_size(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.iterdir() if path.name != contract.TOKENIZER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, metavar="NAME")
    parser.add_argument("--kv-cache", action="store_true")
    options = parser.parse_args()
    variants = [
        (precision, cache)
        for precision in options.precisions
        for cache in ("float", "int8")
        if cache == "float" or (options.kv_cache and precision != "fp16")
    ]
    print("| checkpoint | precision | MB | right | equal answers | by task |\n|---|---|---|---|---|---|")
    for name in options.names:
        truth: list[list[int]] = []
        for precision, cache in variants:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint, output = TESTS / "checkpoints" / name, Path(folder) / "bundle"
                bundle = export_model(checkpoint, output, precision=precision, kv_cache=cache, prove=False)
                judged = ask(name, load(bundle), options.pictures)
                size = weights_size(bundle)
            answers = [answer.token_ids for _, answer, _ in judged]
            truth = truth or answers
            equal = np.mean([ours == theirs for ours, theirs in zip(answers, truth)])
            right = np.mean([right for _, _, right in judged])
            tasks = ", ".join(f"{task} {share:.1%}" for task, share in shares(judged).items())
            what = precision if cache == "float" else f"{precision}, {cache} cache"
            print(f"| {name} | {what} | {size / 1e6:.1f} | {right:.1%} | {equal:.1%} | {tasks} |", flush=True)


if __name__ == "__main__":
    main()
