"""How fast batch jobs are beside loops that are written by hand.

    python tests/benchmarks/batch/speed.py BUNDLE [--rows N] [--rounds N] [--prompt TEXT] [--threads N] [--sizes N ...]

Answers the same rows by a job, in batches by hand, and one a call (`--sizes 1`), in turn: medians of the rounds. The
loop by hand reads the images of its next batch meanwhile. No two images are equal. Loading is not timed: of a job that
is also the start of the processes that read.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from jobs import BROKEN, write_images
from onnx_vlm.runtime import load
from onnx_vlm.runtime.batch import Spec
from onnx_vlm.runtime.images.reading import read
from onnx_vlm.runtime.providers.load_options import LoadOptions

JOB = "a job"
READERS = os.cpu_count() or 1  #: processes that read, as the command has them


def by_hand(options: argparse.Namespace, paths: Sequence[Path], size: int) -> tuple[float, list[str]]:
    """The seconds and the answers of a loop over batches, whose images are read while the batch before is answered."""
    vlm = load(options.bundle, threads=options.threads)
    start = time.perf_counter()
    parts = [paths[first : first + size] for first in range(0, len(paths), size)]
    texts: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(lambda part: [read(path) for path in part], parts[0])
        for part, after in zip(parts, [*parts[1:], []]):
            images, ahead = ahead.result(), pool.submit(lambda part: [read(path) for path in part], after)
            prompts, of_each = [options.prompt] * len(part), [[image] for image in images]
            answers = vlm.generate(prompts, of_each, max_new_tokens=options.max_new_tokens)
            texts += [answer.text for answer in answers]
    return time.perf_counter() - start, texts


def by_job(options: argparse.Namespace, paths: Sequence[Path]) -> tuple[float, list[str]]:
    """The seconds and the answers of a job."""
    spec = Spec(
        options.bundle,
        Path(),
        prompt=options.prompt,
        options={"max_new_tokens": options.max_new_tokens},
        where=LoadOptions(threads=options.threads),
        max_rows=options.max_rows,
        threads=READERS,
        apart=True,
    )
    broken = [{"image": BROKEN}] * 8 * READERS  # no work for the model, and an answer when all processes read
    with spec.worker() as worker:
        list(worker.answer(spec.reader().rows(broken)))
        rows = list(spec.reader().rows({"id": str(path), "image": str(path)} for path in paths))
        start = time.perf_counter()
        texts = {record["id"]: record["text"] for _, record in worker.answer(rows)}
        return time.perf_counter() - start, [texts[str(path)] for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", default="caption")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--max-rows", type=int, default=8, help="of the job")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 16], help="of the batches by hand")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime")
    options = parser.parse_args()
    took: dict[str, list[float]] = {}
    differ: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        paths = write_images(images, options.rows, 0, distinct=options.rows)
        for _ in range(options.rounds):
            answers = {f"by hand, {size}": by_hand(options, paths, size) for size in options.sizes}
            answers[JOB] = by_job(options, paths)
            for name, (seconds, texts) in answers.items():
                others = sum(text != same for text, same in zip(texts, answers[JOB][1], strict=True))
                differ[name] = max(others, differ.get(name, 0))
                took.setdefault(name, []).append(len(paths) / seconds)
    rates = {name: median(each) for name, each in took.items()}
    for name, rate in rates.items():
        share = f"a job is {rates[JOB] / rate:.2f} x that" if name != JOB else ""
        print(f"{name:12} {rate:7.4g} rows/s {[float(f'{one:.4g}') for one in took[name]]} {share}")
    if any(differ.values()):
        sys.exit(f"answers differ from those of the job: {differ}")


if __name__ == "__main__":
    main()
