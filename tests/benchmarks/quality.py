"""What each precision costs on the trained checkpoints: a table of accuracy, equal answers and size.

    python tests/benchmarks/quality.py [--pictures N] [NAME]...

Takes about a quarter of an hour on two cores. Token agreement is the share of answers that are the float32 bundle's, id
for id.
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
    options = parser.parse_args()
    print("| checkpoint | precision | MB | right | equal answers | by task |\n|---|---|---|---|---|---|")
    for name in options.names:
        truth: list[list[int]] = []
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                bundle = export_model(
                    TESTS / "checkpoints" / name, Path(folder) / "bundle", precision=precision, prove=False
                )
                judged = ask(name, load(bundle), options.pictures)
                size = weights_size(bundle)
            answers = [answer.token_ids for _, answer, _ in judged]
            truth = truth or answers
            equal = np.mean([ours == theirs for ours, theirs in zip(answers, truth)])
            right = np.mean([right for _, _, right in judged])
            tasks = ", ".join(f"{task} {share:.1%}" for task, share in shares(judged).items())
            print(f"| {name} | {precision} | {size / 1e6:.1f} | {right:.1%} | {equal:.1%} | {tasks} |", flush=True)


if __name__ == "__main__":
    main()
