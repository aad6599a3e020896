"""A token after many, and a long prompt, with a KV cache of float32 and of int8, in one run.

    python tests/benchmarks/long_contexts.py BUNDLE [OTHER]... [--section steps|prompt] [--rounds N] [--tokens N]

Each bundle is of the same model. `steps` times a token after 100, 2,000 and 8,000 cached tokens, in turns; the cached
tokens are random. `prompt` times one prompt of `--tokens` tokens and says how much of the time the attention takes, as
ONNX Runtime's profile has it. Two threads.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.providers import ort_session

LENGTHS = (100, 2000, 8000)
STEPS = 4  #: of a round; one before them warms up


def cached(vlm: VLM, tokens: int, steps: int) -> Callable[[], float]:
    """The seconds of a step after random tokens."""
    engine, random = vlm.pipeline.engine, np.random.default_rng(0)
    run = engine.open(1, tokens + steps + 1)
    run.begin(0)
    shapes = [one[:, :tokens].shape for one in run.save(0, tokens)]
    dtype = run.save(0, 1)[0].dtype
    large = 40 if dtype == np.int8 else 1
    run.begin(0, [(large * random.standard_normal(shape, "float32")).astype(dtype) for shape in shapes], tokens)
    run.keep(np.array([0]))

    def step() -> float:
        start = time.perf_counter()
        run.step(np.array([0]), np.array([5]))
        return time.perf_counter() - start

    return step


def steps(options: argparse.Namespace) -> None:
    count = options.rounds * (STEPS + 1)
    loaded = {bundle: load(bundle, threads=2) for bundle in options.bundles}
    works = {(bundle, tokens): cached(vlm, tokens, count) for bundle, vlm in loaded.items() for tokens in LENGTHS}
    taken: dict[tuple[Path, int], list[float]] = {work: [] for work in works}
    for _ in range(options.rounds):
        for work, step in works.items():
            taken[work] += [step() for _ in range(STEPS + 1)][1:]
    print("| bundle | bytes a token | " + " | ".join(f"after {tokens}" for tokens in LENGTHS) + " | ratio |")
    print("|---" * (len(LENGTHS) + 3) + "|")
    for bundle, vlm in loaded.items():
        found = [1e3 * median(taken[bundle, tokens]) for tokens in LENGTHS]
        size = vlm.pipeline.engine.kv_bytes(1, 1)
        print(f"| {bundle.name} | {size} | " + " | ".join(f"{one:.1f} ms" for one in found), end=" | ")
        print(f"{found[-1] / found[0]:.2f} |", flush=True)


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Sessions made meanwhile write profiles."""
    plain = ort_session.session_options

    def profiled(attributes: Mapping[str, Any] | None = None) -> ort.SessionOptions:
        written = {"enable_profiling": True, "profile_file_prefix": str(folder / "profile")}
        return plain({**(attributes or {}), **written})

    ort_session.session_options = profiled
    try:
        yield
    finally:
        ort_session.session_options = plain


def prompt(options: argparse.Namespace) -> None:
    print(f"| bundle | {options.tokens} tokens | of it in attention | share |\n|---|---|---|---|")
    for bundle in options.bundles:
        with tempfile.TemporaryDirectory() as folder:
            with profiling(Path(folder)):
                engine = load(bundle, threads=2).pipeline.engine
            random = np.random.default_rng(0)
            row = 0.02 * random.standard_normal((options.tokens, engine.manifest.hidden), "float32")
            start = time.perf_counter()
            engine.start([row], 1)
            seconds = time.perf_counter() - start
            events = json.loads(Path(engine._decoder._session.end_profiling()).read_text())
        nodes = [event for event in events if event.get("args", {}).get("op_name") == "GroupQueryAttention"]
        attention = sum(event["dur"] for event in nodes) / 1e6
        print(f"| {bundle.name} | {seconds:.1f} s | {attention:.1f} s | {attention / seconds:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--section", choices=["steps", "prompt"], default="steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4000)
    options = parser.parse_args()
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    print("CPU:", ", ".join(flag for flag in known if flags and flag in flags[1].split()))
    {"steps": steps, "prompt": prompt}[options.section](options)


if __name__ == "__main__":
    main()
