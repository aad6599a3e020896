"""How long a bundle takes to embed pages and queries, and how much memory.

    python tests/benchmarks/embedding.py BUNDLE [--threads N] [--repeats N] [--expand-weights]

Each figure is the median of the repeats, after one that is not counted.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
from onnx_vlm.runtime import late_interaction, load  # noqa: E402
from onnx_vlm.runtime.images.reading import read  # noqa: E402
from onnx_vlm.runtime.images.tiles import tiles  # noqa: E402

QUERY = "How much did the costs of transport rise in the third quarter, and {} since?"


def seconds(repeats: int, work: Callable[[int], object]) -> float:
    """The median of the repeats; `work` is told the number of the repeat."""
    times = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--expand-weights", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    vlm = load(options.bundle, threads=options.threads, expand_weights=options.expand_weights)
    print(f"load for queries: {time.perf_counter() - start:.2f} s", flush=True)
    one = seconds(options.repeats, lambda number: vlm.embed(queries=QUERY.format(number)))
    many = seconds(options.repeats, lambda number: vlm.embed(queries=[QUERY.format(10 * number + i) for i in range(8)]))
    print(f"a query: {one:.3f} s; 8 queries together: {many:.3f} s; peak {peak()}", flush=True)
    random = np.random.default_rng(0)
    pages = [random.integers(0, 256, (1600, 1200, 3), np.uint8) for _ in range(options.repeats + 1)]
    kept: list[np.ndarray] = []
    page = seconds(options.repeats, lambda number: kept.extend(vlm.embed(pages[number])))
    print(f"a page: {page:.2f} s, {kept[0].shape[0]} vectors of {kept[0].shape[1]}; peak {peak()}", flush=True)
    cut = tiles(read(pages[0]), vlm.manifest.image)
    seen = seconds(options.repeats, lambda number: vlm.pipeline.engine.encode_images(cut))
    print(f"of it the vision encoder: {seen:.2f} s", flush=True)
    queries, held = vlm.embed(queries=[QUERY.format("since")]), kept * (1000 // len(kept))
    score = seconds(options.repeats, lambda number: late_interaction(queries, held))
    print(f"a query against {len(held)} pages: {score:.2f} s", flush=True)


if __name__ == "__main__":
    main()
