"""A job's results: each row once, whenever the job is stopped, and none of another job."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import batch_fakes
import pytest
from batch_fakes import echo, read_results, write_rows
from onnx_vlm.graphs import GenerationError, InputError
from onnx_vlm.runtime.batch import Batch, Spec, run
from onnx_vlm.runtime.batch.ray_engine import on_ray
from onnx_vlm.runtime.batch.run import Answer, Opened, answer_here

ROWS = [{"prompt": f"row {index}" + " bad" * (index % 5 == 3)} for index in range(20)]


def killed(bundle: Path, rows: Path, output: Path, moment: int, retry: bool = False) -> bool:
    """Run a job that is killed at a moment; False if it ended before."""
    command = [sys.executable, batch_fakes.__file__, bundle, rows, output, moment, "retry" if retry else ""]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode != 0


def test_a_job_that_is_killed_at_any_moment_has_each_row_once(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:8])
    for moment in range(12):  # of 4 files: job.json and 3 shards
        output = tmp_path / str(moment)
        assert killed(bundle, rows, output, moment)
        read_results(output)
        progress = echo(bundle, rows, output)
        assert (progress.done, progress.failed.total()) == (8, 1)
        texts = [read_results(output)[str(index)]["text"] for index in range(8)]
        assert texts == [None if "bad" in row["prompt"] else row["prompt"] for row in ROWS[:8]]


def test_a_job_that_is_killed_again_and_again_comes_to_its_end(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:11])
    moments = random.Random(5)
    while killed(bundle, rows, tmp_path / "out", moments.randrange(1, 9)):
        pass
    assert len(read_results(tmp_path / "out")) == 11
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize("moment", range(6))
def test_a_retry_that_is_killed_loses_nothing(bundle: Path, tmp_path: Path, moment: int):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out", shard_rows=3)
    write_rows(rows, [{"prompt": f"row {index}"} for index in range(20)])
    assert killed(bundle, rows, tmp_path / "out", moment, retry=True)
    read_results(tmp_path / "out")
    progress = echo(bundle, rows, tmp_path / "out", retry_errors=True)
    assert (progress.done, progress.failed.total()) == (20, 0)
    assert {record["text"] for record in read_results(tmp_path / "out").values()} == {f"row {i}" for i in range(20)}


def test_failed_rows_stay_until_a_retry(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out")
    write_rows(rows, [{"prompt": f"row {index}"} for index in range(20)])
    assert echo(bundle, rows, tmp_path / "out").failed.total() == 4
    failed = read_results(tmp_path / "out")["3"]
    assert failed["error"] == "the prompt row 3 bad is bad"
    assert failed["error_kind"] == "InputError: the prompt row N bad is bad"


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_input_may_grow(bundle: Path, tmp_path: Path, format: str):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:7])
    echo(bundle, rows, tmp_path / "out", format=format)
    first = {path: path.read_bytes() for path in (tmp_path / "out").glob("shard-*")}
    write_rows(rows, ROWS)
    progress = echo(bundle, rows, tmp_path / "out", format=format)
    assert (progress.total, progress.done, progress.failed.total()) == (20, 20, 4)
    assert all(path.read_bytes() == data for path, data in first.items())


def test_results_are_found_whatever_their_ids(bundle: Path, tmp_path: Path):
    prompts = [{"prompt": f"row {index}"} for index in range(2000)]
    rows = write_rows(tmp_path / "rows.jsonl", prompts[:1500])
    echo(bundle, rows, tmp_path / "out", shard_rows=1000)
    write_rows(rows, prompts)
    echo(bundle, rows, tmp_path / "out", shard_rows=1000)
    assert len(read_results(tmp_path / "out")) == 2000


def test_no_row_is_there_twice_if_what_is_told_of_a_file_fails(bundle: Path, tmp_path: Path):
    def fail(*_: object) -> None:
        raise BrokenPipeError

    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(BrokenPipeError):
        run(
            Batch(rows, tmp_path / "out", Spec(bundle, Path()), shard_rows=3),
            batch_fakes.answer_by_echo,
            on_shard=fail,
        )
    assert len(read_results(tmp_path / "out")) == 3


def test_a_row_that_has_changed_is_refused(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out")
    write_rows(rows, [{"prompt": "another"}, *ROWS[1:]])
    with pytest.raises(InputError, match="the row '0' of the input is not what it was"):
        echo(bundle, rows, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompt": "other"}, "prompt"),
        ({"options": {"max_new_tokens": 3}}, "options"),
        ({"carry": ["prompt"]}, "carry"),
        ({"format": "parquet"}, "output"),
        ({"columns": {"image": "photo"}}, "columns"),
    ],
)
def test_results_of_another_job_are_refused(bundle: Path, tmp_path: Path, change: dict, name: str):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out")
    with pytest.raises(InputError, match=f"has results of another job: its {name} is"):
        echo(bundle, rows, tmp_path / "out", **change)


def test_results_of_another_bundle_are_refused(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    for path in bundle.iterdir():
        (other / path.name).symlink_to(path)
    (other / "manifest.json").unlink()
    text = (bundle / "manifest.json").read_text()
    (other / "manifest.json").write_text(text.replace('"checkpoint": "', '"checkpoint": "other '))
    with pytest.raises(InputError, match="its bundle is"):
        echo(other, rows, tmp_path / "out")


@contextmanager
def on_cuda(opened: Opened) -> Iterator[Iterator[dict]]:
    """Answer rows, as if on a GPU."""
    with batch_fakes.answer_by_echo(opened) as records:
        opened.job.note_arithmetic("cuda")
        yield records


def test_results_of_two_providers_are_mixed_only_if_that_is_asked_for(bundle: Path, tmp_path: Path):
    def job(answer: Answer, **options: bool) -> int:
        return run(Batch(rows, tmp_path / "out", Spec(bundle, Path()), **options), answer).done

    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:7])
    assert job(on_cuda) == 7
    assert job(answer_here) == 7  # nothing is left to answer
    write_rows(rows, ROWS[:14])
    before = (tmp_path / "out" / "job.json").read_bytes()
    with pytest.raises(InputError, match=r"has results of the provider cuda, and this is cpu.*--provider cuda"):
        job(answer_here)
    assert len(read_results(tmp_path / "out")) == 7
    assert (tmp_path / "out" / "job.json").read_bytes() == before
    assert job(on_cuda) == 14
    write_rows(rows, ROWS)
    assert job(answer_here, mix_providers=True) == 20
    assert json.loads((tmp_path / "out" / "job.json").read_text())["provider"] == ["cuda", "cpu"]
    write_rows(rows, [*ROWS, *ROWS[:4]])
    assert job(on_cuda) == 24  # results are mixed already


def test_options_that_say_what_the_bundle_says_are_no_other_ones(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out")
    assert echo(bundle, rows, tmp_path / "out", options={"num_beams": 1}).done == 20


def test_equal_ids_are_refused_before_any_work(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"id": id, "prompt": "x"} for id in ("a", 1, "1")])
    with pytest.raises(InputError, match="two rows of the input have the id '1'"):
        echo(bundle, rows, tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard-*"))


def test_an_output_that_is_no_job_is_left_alone(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(InputError, match="is not empty and holds no job"):
        echo(bundle, rows, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        echo(bundle, rows, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_job_that_has_no_results_may_become_another(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(InputError, match="'text' cannot be carried"):
        echo(bundle, rows, tmp_path / "out", carry=["text"])
    assert echo(bundle, rows, tmp_path / "out").done == 20


def test_two_jobs_do_not_write_to_one_folder(bundle: Path, tmp_path: Path):
    from onnx_vlm.runtime.batch.job import Job

    with Job(tmp_path / "out", {"a": 1}), pytest.raises(InputError, match="another job writes to"):
        Job(tmp_path / "out", {"a": 1})


def test_results_that_were_changed_are_refused(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    echo(bundle, rows, tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("shard-*")
    (tmp_path / "out" / "shard-000001.jsonl").write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match="two results of one row"):
        echo(bundle, rows, tmp_path / "out")
    (tmp_path / "out" / "shard-000001.jsonl").write_text('{"id": "0"')
    with pytest.raises(InputError, match=r"shard-000001\.jsonl cannot be read"):
        echo(bundle, rows, tmp_path / "out")


def test_results_come_when_a_job_is_interrupted(bundle: Path, tmp_path: Path):
    def stop(record: dict) -> None:
        if record["id"] == "6":
            raise KeyboardInterrupt

    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(KeyboardInterrupt):
        run(Batch(rows, tmp_path / "out", Spec(bundle, Path())), batch_fakes.answer_by_echo, on_row=stop)
    assert len(read_results(tmp_path / "out")) == 7


def test_ray_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(**_: object) -> None:
        raise Exception("the node timed out")

    fake = ModuleType("ray")
    fake.data, fake.init, fake.is_initialized = ModuleType("ray.data"), fails, lambda: False
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.data", fake.data)
    with pytest.raises(GenerationError, match="Ray does not start: the node timed out"), on_ray(tmp_path)(None):
        pass
