"""Batch jobs: that none loses or repeats a row however often it is killed, and that none grows.

    python tests/benchmarks/batch/jobs.py kills BUNDLE [--rows N] [--kills N] [--engine local|ray]
    python tests/benchmarks/batch/jobs.py memory BUNDLE [--rows N] [--workers N]

BUNDLE is one of a checkpoint in tests/checkpoints. `kills` runs the command over images of which 2 % are broken, kills
it (and with Ray, half of the time one of its workers) at random times, and then compares each row with
`VLM.generate` alone. `memory` runs the command once, with answers of at most 4 tokens, and prints the memory of its
process and of those that read images as it goes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from onnx_vlm.runtime import load

MOST_FAILED = 5
DISTINCT, BROKEN = 400, b"\x89PNG\r\n\x1a\nbroken"
COMMAND = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()"]


def write_images(folder: Path, count: int, broken_share: float, distinct: int = DISTINCT) -> list[Path]:
    """Images, no more than `distinct` of them different, and broken ones among them."""
    sys.path.append(str(Path(__file__).parents[2] / "checkpoints"))
    import shapes

    sources = []
    for index in range(min(distinct, count)):
        sources.append(folder.parent / f"source-{index}.png")
        shapes.draw(shapes.scene(shapes.HELD_OUT + index)).save(sources[-1])
    chosen = random.Random(0)
    broken = set(chosen.sample(range(count), round(count * broken_share)))
    paths = []
    for index in range(count):
        paths.append(folder / f"{index:06}.png")
        if index in broken:
            paths[-1].write_bytes(BROKEN)
        else:
            os.link(sources[index % len(sources)], paths[-1])
    return paths


def kills(options: argparse.Namespace, folder: Path) -> None:
    images, output = folder / "images", folder / "out"
    images.mkdir()
    paths = write_images(images, options.rows, 0.02)
    command = ["batch", options.bundle, images, output, "--prompt", options.prompt, "--shard-rows", "100"]
    command += ["--threads", "1", "--engine", options.engine, "--json"]
    command += ["--workers", "2"] if options.engine == "ray" else []
    moments, killed, memory, start = random.Random(options.seed), {"driver": 0, "worker": 0}, [], time.perf_counter()
    failed: list[str] = []  # such as Ray that does not start on a busy machine; the command says to start it again
    while True:
        with (folder / "events.jsonl").open("w") as events:
            job = subprocess.Popen([*COMMAND, *map(str, command)], stdout=events, stderr=subprocess.PIPE, text=True)
        if sum(killed.values()) < options.kills:
            wait_for_shard(output, job)
            time.sleep(moments.random() * options.between)
            victims = ray_workers(job.pid)
            if victims and moments.random() < 0.5:
                os.kill(moments.choice(victims), signal.SIGKILL)
                killed["worker"] += 1
                wait_for_shard(output, job)
            memory.append(held(job.pid, "Rss"))
            if job.poll() is None:
                job.kill()
                killed["driver"] += 1
        _, errors = job.communicate()
        if job.returncode == 0:
            break
        if job.returncode != -signal.SIGKILL:
            failed.append(errors.strip())
            print(f"the job ended with {job.returncode}: {failed[-1]:.300}", flush=True)
            if len(failed) > MOST_FAILED:
                sys.exit("it ended so too often")
    seconds = time.perf_counter() - start
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    print(f"killed {killed}, failed {len(failed)} times, {len(paths)} rows in {seconds:.0f} s, the last event: {last}")
    print(f"memory of the process in MB, as it was killed: {[round(bytes / 1e6) for bytes in memory]}")
    check(options, paths, output)


def memory(options: argparse.Namespace, folder: Path) -> None:
    images, output = folder / "images", folder / "out"
    images.mkdir()
    write_images(images, options.rows, 0.02)
    command = ["batch", options.bundle, images, output, "--prompt", options.prompt, "--max-new-tokens", "4"]
    command += ["--threads", "1", "--workers", options.workers, "--shard-rows", "1000", "--json"]
    start = time.perf_counter()
    job = subprocess.Popen([*COMMAND, *map(str, command)], stdout=subprocess.DEVNULL)
    seen = 0
    while job.poll() is None:
        time.sleep(0.2)
        written = 1000 * len(list(output.glob("shard-*.jsonl")))
        if written >= seen + options.rows // 10:
            seen = written
            readers = [f"{held(pid, 'Rss') / 1e6:.0f}" for pid in children(job.pid)]
            shared = sum(held(pid, "Pss") for pid in (job.pid, *children(job.pid)))
            print(
                f"{seen:7} rows written: {held(job.pid, 'Rss') / 1e6:.0f} MB, readers {' and '.join(readers)} MB,"
                f" together {shared / 1e6:.0f} MB; {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    if job.returncode:
        sys.exit(f"the command ended with {job.returncode}")


def check(options: argparse.Namespace, paths: Sequence[Path], output: Path) -> None:
    """Compare each row with `generate` alone."""
    vlm, alone = load(options.bundle, threads=1), dict[bytes, str | None]()
    records = [json.loads(line) for path in output.glob("shard-*.jsonl") for line in path.open()]
    by_id = {record["id"]: record for record in records}
    assert len(records) == len(by_id) == len(paths), f"{len(records)} records of {len(by_id)} rows"
    for path in paths:
        data = path.read_bytes()
        if data not in alone:
            alone[data] = None if data == BROKEN else vlm.generate(options.prompt, data).text
        record = by_id[path.name]
        assert record["text"] == alone[data], f"{path}: {record}"
        assert (record["error"] is None) == (data != BROKEN), f"{path}: {record}"
    print(f"each of {len(paths)} rows is there once and equals `generate` alone; {len(alone)} different images")


def wait_for_shard(output: Path, job: subprocess.Popen) -> None:
    """Wait until a file of results has come, or the job has ended."""
    before = len(list(output.glob("shard-*")))
    while job.poll() is None and len(list(output.glob("shard-*"))) <= before:
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The processes that a process began."""
    with suppress(OSError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def held(pid: int, kind: str) -> int:
    """Bytes of memory of a process: "Rss" with all that it shares, "Pss" with its part of that; 0 if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))
    return 0


def ray_workers(pid: int) -> list[int]:
    """The actors of Ray below a process."""
    parents, actors = {}, []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_text().startswith("ray::MapWorker"):
                actors.append(int(entry.name))

    def is_below(child: int) -> bool:
        while child in parents and child != pid:
            child = parents[child]
        return child == pid

    return [actor for actor in actors if is_below(actor)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--between", type=float, default=5.0, help="the most seconds from a shard to a kill")
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument("--prompt", default="caption")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images in `memory`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        MODES[options.mode](options, Path(folder))


MODES = {"kills": kills, "memory": memory}


if __name__ == "__main__":
    main()
