"""Jobs and batches on a local cluster of Ray, with two workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shapes
from batch_fakes import read_results, write_rows
from helpers import run_command
from onnx_vlm.batch import Predictor, ProcessorConfig, build_processor
from onnx_vlm.runtime import VLM, load

pytestmark = pytest.mark.needs("ray")
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


def rows_of_images(folder: Path, count: int) -> list[dict[str, str]]:
    rows = []
    for index in range(count):
        path = folder / f"{index}.png"
        shapes.draw(shapes.scene(shapes.HELD_OUT + index % 20)).save(path)
        rows.append({"id": path.name, "image": str(path), "prompt": "caption"})
    (folder / "3.png").write_bytes(b"broken")
    return rows


def expected(vlm: VLM, rows: list[dict[str, str]]) -> dict[str, str | None]:
    known: dict[bytes, str | None] = {b"broken": None}
    for row in rows:
        data = Path(row["image"]).read_bytes()
        if data not in known:
            known[data] = vlm.generate("caption", data).text
    return {row["id"]: known[Path(row["image"]).read_bytes()] for row in rows}


def test_a_pipeline_of_ray_data(bundle: Path, vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    import ray

    rows = rows_of_images(tmp_path, 8)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        dataset = ray.data.from_items(rows)
        arguments = {"bundle": str(bundle), "carry": ["image"], "threads": 1}
        answered = dataset.map_batches(
            Predictor,
            fn_constructor_kwargs=arguments,
            batch_size=4,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
            num_cpus=1,
        )
        by_image = {Path(row["image"]).name: row["text"] for row in answered.take_all()}
        processor = build_processor(
            ProcessorConfig(
                str(bundle), {"carry": ["name"], "threads": 1}, batch_size=4, concurrency=(1, 2), num_cpus=1
            ),
            preprocess=lambda row: {"name": row["id"], "image": row["image"], "prompt": "caption"},
            postprocess=lambda row: {"name": row["name"], "answer": row["text"]},
        )
        processed = {row["name"]: row["answer"] for row in processor(dataset).take_all()}
    finally:
        ray.shutdown()
    assert by_image == processed == expected(vlm, rows)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """The processes below one, and their command lines."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and child != pid:
            try:
                yield child, Path(f"/proc/{child}/cmdline").read_text()
            except OSError:
                continue


def test_a_job_whose_workers_and_driver_are_killed(bundle: Path, vlm: VLM, tmp_path: Path):
    (tmp_path / "images").mkdir()
    rows = rows_of_images(tmp_path / "images", 160)
    table = write_rows(tmp_path / "rows.jsonl", rows)
    command = ["batch", bundle, table, tmp_path / "out", "--engine", "ray", "--workers", 2, "--shard-rows", 16]
    command += ["--threads", 1]
    code = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", *map(str, command)]
    environment = os.environ | QUIET
    job = subprocess.Popen(code, stderr=subprocess.DEVNULL, env=environment)
    actors: list[int] = []
    while not actors and job.poll() is None:
        time.sleep(0.05)
        actors = [pid for pid, line in descendants(job.pid) if line.startswith("ray::MapWorker")]
    os.kill(actors[0], signal.SIGKILL)  # it is made anew, and its rows are answered again
    while job.poll() is None and not list((tmp_path / "out").glob("shard-*")):
        time.sleep(0.05)
    job.kill()
    job.wait()
    answers = expected(vlm, rows)
    before = {id: record["text"] for id, record in read_results(tmp_path / "out").items()}
    assert before.items() <= answers.items()
    done = run_command(*command, env=environment)
    assert done.returncode == 0, done.stderr
    assert {id: record["text"] for id, record in read_results(tmp_path / "out").items()} == answers
