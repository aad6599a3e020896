"""What limits a batch job on many machines: a model of a row's cost, held to runs, and a simulation of many workers.

    python tests/benchmarks/scale.py measure BUNDLE [--rows N] [--rounds N]
    python tests/benchmarks/scale.py simulate

`measure` takes the seconds of each stage of a row on one core, and of what else a worker does from a run of a quarter
of the rows. It says from them how many rows a second one and two workers answer, each on a core of its own, and runs
them; and it measures what the driver does for a row. `simulate`
runs jobs of a million rows on 1 to 4,000 workers with stragglers and losses. Equal seeds give equal results.
"""

from __future__ import annotations

import argparse
import heapq
import math
import multiprocessing
import os
import pickle
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import numpy as np
from batch_jobs import write_images
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
    """One worker on one core: the seconds of its rows."""
    os.sched_setaffinity(0, {core})
    spec = Spec(bundle, Path(), prompt=prompt, max_rows=ROWS, threads=1, where=LoadOptions(threads=1))
    with spec.worker() as worker:
        rows = list(spec.reader().rows({"id": path.name, "image": str(path)} for path in paths))
        list(worker.answer(rows[: 4 * ROWS]))
        begin.wait()
        start = time.perf_counter()
        list(worker.answer(rows))
        took.put(time.perf_counter() - start)


def rate(workers: int, bundle: Path, paths: Sequence[Path], prompt: str) -> float:
    """Rows a second of so many workers, each of which answers all rows."""
    context = multiprocessing.get_context("spawn")
    begin, took = context.Barrier(workers), context.Queue()
    cores = sorted(os.sched_getaffinity(0), reverse=True)[:workers]
    processes = [context.Process(target=work, args=(core, bundle, paths, prompt, begin, took)) for core in cores]
    for process in processes:
        process.start()
    seconds = [took.get() for _ in processes]
    for process in processes:
        process.join()
    return workers * len(paths) / mean(seconds)


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
        paths = write_images(folder / "images", options.rows, 0)
        ratios: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {max(cores)})
            costs = stages(options.bundle, paths[:64], options.prompt)
            os.sched_setaffinity(0, cores)
            costs["the rest"] = 1 / rate(1, options.bundle, paths[: options.rows // 4], options.prompt) - sum(
                costs.values()
            )
            row = sum(costs.values())
            print({name: f"{1000 * seconds:.3f} ms" for name, seconds in costs.items()}, f"a row {1000 * row:.2f} ms")
            for workers, seen in ratios.items():
                predicted, measured = workers / row, rate(workers, options.bundle, paths, options.prompt)
                seen.append(measured / predicted)
                print(f"{workers} workers: predicted {predicted:.1f} rows/s, measured {measured:.1f}", flush=True)
        for workers, seen in ratios.items():
            print(f"{workers} workers: measured / predicted {median(seen):.2f} {[round(one, 2) for one in seen]}")
        driver = driver_seconds(folder)
        print("driver, a row:", {name: f"{1e6 * seconds:.0f} us" for name, seconds in driver.items()})


@dataclass(frozen=True)
class Cluster:
    """A job on a cluster. Times are in seconds, sizes in bytes.

    Attributes:
        row: that a usual worker takes for a row.
        driver: that the driver takes for a row, all told.
        image: of a row's image.
        store, link: bytes a second that the object store and the network of one machine give.
        start: until a machine that was asked for is there.
        straggler: how many times as long the slowest hundredth of the machines takes; others vary by a tenth.
        life: after which a machine is lost, in the mean.
        noticed: until a loss is noticed.
        block: rows that a worker gets at once.
    """

    row: float
    rows: int = 1_000_000
    driver: float = 60e-6
    bundle: float = 1.24e9
    image: float = 200e3
    store: float = 12.5e9
    link: float = 1.25e9
    start: float = 60.0
    straggler: float = 3.0
    life: float = 20 * 3600.0
    noticed: float = 30.0
    block: int = 32


def simulate(cluster: Cluster, workers: int, seed: int = 0) -> dict[str, float]:
    """Run a job. A worker takes the next block when it is free; a lost one's block goes back, another machine comes.

    Returns:
        hours, rows a second from beginning to end, the share of the workers' time that was of use (efficiency), the
        share of it that was waiting for the end, how busy the driver was, and how many machines were lost.
    """
    chance = random.Random(seed)
    fetch = cluster.bundle / min(cluster.link, cluster.store / workers)
    reading = cluster.image * workers / cluster.store  # seconds that the store needs for a row of each worker
    row = max(cluster.row, reading)

    def machine(ready: float) -> tuple[float, float, float]:
        """When a worker is free, how slow it is, and when it is lost."""
        slow = cluster.straggler if chance.random() < 0.01 else math.exp(chance.gauss(0, 0.1))
        return ready + fetch, slow, ready + chance.expovariate(1 / cluster.life)

    free = [machine(cluster.start) for _ in range(workers)]
    heapq.heapify(free)
    waiting = [cluster.block] * (cluster.rows // cluster.block)
    back: list[tuple[float, int]] = []  # when a lost block can be taken again
    finished: list[float] = []
    ends, lost, useful = [], 0, 0.0
    while waiting or back:
        ready, slow, death = heapq.heappop(free)
        if not waiting:
            ready = max(ready, heapq.heappop(back)[0])
            waiting.append(cluster.block)
        end = ready + waiting[-1] * row * slow
        if end > death:
            lost += 1
            heapq.heappush(free, machine(max(death, ready) + cluster.noticed + cluster.start))
            heapq.heappush(back, (max(death, ready) + cluster.noticed, waiting.pop()))
            continue
        waiting.pop()
        useful += cluster.block * cluster.row
        finished.append(end)
        heapq.heappush(free, (end, slow, death))
    written = 0.0
    for end in sorted(finished):
        written = max(written, end) + cluster.block * cluster.driver
    ends = [time for time, _, _ in free]
    return {
        "hours": written / 3600,
        "rows/s": cluster.rows / written,
        "efficiency": useful / (workers * written),
        "waiting for the end": sum(max(0.0, written - end) for end in ends) / (workers * written),
        "driver busy": cluster.rows * cluster.driver / written,
        "lost": lost,
    }


CASES = {
    "a CPU, 3.4 s a row": Cluster(row=3.4),
    "a GPU, 0.05 s a row": Cluster(row=0.05),
    "the same, blocks of 8": Cluster(row=0.05, block=8),
    "the CPU, no stragglers": Cluster(row=3.4, straggler=1.0),
    "the CPU, blocks of 8": Cluster(row=3.4, block=8),
    "the CPU, machines live for 2 hours": Cluster(row=3.4, life=2 * 3600.0),
    "the CPU, images of 20 MB": Cluster(row=3.4, image=20e6),
}


def show(_: argparse.Namespace) -> None:
    for name, cluster in CASES.items():
        print(name)
        for workers in (1, 10, 100, 1000, 4000):
            result = simulate(cluster, workers)
            print(f"  {workers:5} workers", {key: float(f"{value:.3g}") for key, value in result.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    measuring = modes.add_parser("measure")
    measuring.add_argument("bundle", type=Path)
    measuring.add_argument("--rows", type=int, default=400)
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--prompt", default="caption")
    measuring.set_defaults(run=measure)
    modes.add_parser("simulate").set_defaults(run=show)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
