"""A batch job on a cluster in a discrete simulation. Equal seeds give equal results."""

from __future__ import annotations

import argparse
import heapq
import math
import random
from dataclasses import dataclass


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
