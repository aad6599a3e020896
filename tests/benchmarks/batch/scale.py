"""What limits a batch job on many machines: a model of a row's cost, held to runs, and a simulation of many workers.

    python tests/benchmarks/batch/scale.py measure BUNDLE [--rows N] [--rounds N]
    python tests/benchmarks/batch/scale.py simulate

`measure` takes the seconds of each stage of a row on one core, and those of a whole row from a run of one worker over a
quarter of the rows: "the rest" is what a worker does besides. Their medians say how many rows a second one and two
workers answer, each on a core of its own, and are held to runs. It also measures what the driver does for a row.
`simulate` runs jobs of a million rows on 1 to 4,000 workers with stragglers and losses; see cluster.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np
from cluster import show
from jobs import write_images
from onnx_vlm.runtime import load
from onnx_vlm.runtime.batch import Spec
from onnx_vlm.runtime.batch.job import Job, collect, left, plan
from onnx_vlm.runtime.batch.progress import Progress
from onnx_vlm.runtime.batch.records import Recorder
from onnx_vlm.runtime.batch.shards import Shards
from onnx_vlm.runtime.batch.sources import open_source
from onnx_vlm.runtime.inputs import Request
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.results import Generation

ROWS, GROUP = 8, 4  #: rows that a worker answers at once, and of them those whose prompts run together
WARM = 4 * ROWS  #: rows before those that are timed; no image of theirs comes again, as it would not be encoded


def seconds_each(work: Callable[[], object], count: int) -> float:
    """The median seconds of one of `count` things that are done by `work`."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times) / count


def stages(bundle: Path, paths: Sequence[Path], prompt: str) -> dict[str, float]:
    """The seconds of each stage of a row, on this process's cores."""
    vlm = load(bundle, threads=1)
    pipeline, engine = vlm.pipeline, vlm.pipeline.engine
    media = [pipeline.read_media([path], []) for path in paths]
    requests = [Request(prompt, [path], [], None, media=one) for path, one in zip(paths, media)]
    prompts = [pipeline.encode(request).prompt for request in requests]
    embeds = pipeline.embed(prompts)
    answers = vlm.generate([prompt] * len(paths), [[path] for path in paths])
    tokens = mean(len(answer.token_ids) for answer in answers)
    _, run = engine.start(embeds[:ROWS], 64)
    rows, ids = np.arange(ROWS), np.zeros(ROWS, np.int64)
    groups = range(0, len(paths) - GROUP + 1, GROUP)
    tiles = [np.concatenate([one for prompt in prompts[at : at + GROUP] for one in prompt.tiles]) for at in groups]
    recorder = Recorder("generate", Spec(bundle, Path()).reader())
    (row,) = Spec(bundle, Path(), prompt=prompt).reader().rows([{"id": "0", "image": "0.png"}])
    return {
        "read": seconds_each(lambda: [pipeline.read_media([path], []) for path in paths], len(paths)),
        "prompt": seconds_each(lambda: [pipeline.encode(request) for request in requests], len(paths)),
        "vision": seconds_each(lambda: [engine.encode_images(part) for part in tiles], GROUP * len(groups)),
        "prefill": seconds_each(
            lambda: [engine.start(embeds[at : at + GROUP], 8) for at in groups], GROUP * len(groups)
        ),
        "decode": (tokens - 1) * seconds_each(lambda: [run.step(rows, ids) for _ in range(8)], 8 * ROWS),
        "record": seconds_each(
            lambda: [recorder.record(row, replace(answer, timings=TIMINGS)) for answer in answers], len(answers)
        ),
    }


TIMINGS = dict.fromkeys(("preprocess", "vision", "prefill", "decode", "tokens_per_second"), 0.0)


def work(core: int, bundle: Path, paths: Sequence[Path], prompt: str, begin: object, took: object) -> None:
    """One worker on one core: the seconds of its rows but the first `WARM`."""
    os.sched_setaffinity(0, {core})
    spec = Spec(bundle, Path(), prompt=prompt, max_rows=ROWS, threads=1, where=LoadOptions(threads=1))
    with spec.worker() as worker:
        rows = list(spec.reader().rows({"id": path.name, "image": str(path)} for path in paths))
        list(worker.answer(rows[:WARM]))
        begin.wait()
        start = time.perf_counter()
        list(worker.answer(rows[WARM:]))
        took.put(time.perf_counter() - start)


def rate(workers: int, bundle: Path, paths: Sequence[Path], prompt: str) -> float:
    """Rows a second of so many workers, each of which answers all rows but the first `WARM`."""
    context = multiprocessing.get_context("spawn")
    begin, took = context.Barrier(workers), context.Queue()
    cores = sorted(os.sched_getaffinity(0), reverse=True)[:workers]
    processes = [context.Process(target=work, args=(core, bundle, paths, prompt, begin, took)) for core in cores]
    for process in processes:
        process.start()
    seconds = [took.get() for _ in processes]
    for process in processes:
        process.join()
    return workers * (len(paths) - WARM) / mean(seconds)


def driver_seconds(folder: Path, rows: int = 20_000) -> dict[str, float]:
    """What the driver of a job on Ray does for a row: planning it, and taking and writing its record."""
    table = folder / "rows.jsonl"
    table.write_text("".join(f'{{"id": "{index:06}", "image": "images/{index:06}.png"}}\n' for index in range(rows)))
    source, reader = open_source(table), Spec(folder, folder, prompt="caption").reader()
    with Job(folder / "out", {"name": "measured"}):
        shards = Shards(folder / "out", "jsonl")
        start = time.perf_counter()
        done = shards.done()
        planned = plan(source, reader, done)
        all_rows = list(left(source, reader, done, planned))
        planning = (time.perf_counter() - start) / rows
        recorder = Recorder("generate", reader)
        answer = Generation("a red circle and two blue squares", [1] * 32, "stop", 300, timings=TIMINGS)
        pickled = [pickle.dumps(recorder.record(row, answer)) for row in all_rows]
        start = time.perf_counter()
        collect(map(pickle.loads, pickled), shards, Progress(rows, 0, done.failed), 256, lambda *_: None)
        return {"planning": planning, "taking and writing": (time.perf_counter() - start) / rows}


def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        count = WARM + options.rows
        paths = write_images(folder / "images", count, 0, distinct=count)
        short = paths[: WARM + options.rows // 4]
        noted: list[dict[str, float]] = []
        rows: list[float] = []  # seconds of one in the short runs
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {max(cores)})
            noted.append(stages(options.bundle, paths[:64], options.prompt))
            os.sched_setaffinity(0, cores)
            rows.append(1 / rate(1, options.bundle, short, options.prompt))
            print(_milliseconds(noted[-1]), f"a row of a short run: {1000 * rows[-1]:.2f} ms")
            for workers, seen in rates.items():
                seen.append(rate(workers, options.bundle, paths, options.prompt))
                print(f"{workers} workers: {seen[-1]:.1f} rows/s", flush=True)
        costs = {name: median(each[name] for each in noted) for name in noted[0]}
        costs["the rest"] = median(rows) - sum(costs.values())
        print("medians:", _milliseconds(costs))
        for workers, seen in rates.items():
            predicted, measured = workers / sum(costs.values()), median(seen)
            print(
                f"{workers} workers: predicted {predicted:.1f} rows/s, measured {measured:.1f},"
                f" {measured / predicted:.2f} times that"
            )
        driver = driver_seconds(folder)
        print("driver, a row:", {name: f"{1e6 * seconds:.0f} us" for name, seconds in driver.items()})


def _milliseconds(costs: dict[str, float]) -> str:
    each = ", ".join(f"{name} {1000 * seconds:.3f}" for name, seconds in costs.items())
    return f"ms a row: {each}; {1000 * sum(costs.values()):.2f} in all."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    measuring = modes.add_parser("measure")
    measuring.add_argument("bundle", type=Path)
    measuring.add_argument("--rows", type=int, default=800)
    measuring.add_argument("--rounds", type=int, default=5)
    measuring.add_argument("--prompt", default="caption")
    measuring.set_defaults(run=measure)
    modes.add_parser("simulate").set_defaults(run=show)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
