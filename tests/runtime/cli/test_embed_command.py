"""`onnx-vlm embed` and batch jobs of the task embed: the files have the vectors of `VLM.embed`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes
from batch_fakes import read_results, write_rows
from helpers import run_command
from onnx_vlm.runtime import VLM, InputError, load
from onnx_vlm.runtime.batch import Batch, Spec, run

PAGES = 3


@pytest.fixture(scope="module")
def colpali(bundles: Callable[..., Path]) -> Path:
    return bundles("colpali")


@pytest.fixture(scope="module")
def vlm(colpali: Path) -> VLM:
    return load(colpali, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, and a file of queries."""
    folder = tmp_path_factory.mktemp("pages")
    for index in range(PAGES):
        shapes.draw(shapes.scene(shapes.HELD_OUT + index)).save(folder / f"{index}.png")
    return folder


def test_pages_are_written_as_npz(colpali: Path, vlm: VLM, folder: Path, tmp_path: Path):
    images = sorted(folder.iterdir())
    done = run_command(
        "embed", colpali, *images, "--output", tmp_path / "pages.npz", "--threads", 1, "--pool-factor", 2
    )
    assert done.returncode == 0, done.stderr
    assert f"{PAGES} pages" in done.stderr
    stored = np.load(tmp_path / "pages.npz")
    assert stored["ids"].tolist() == [*map(str, images)]
    pages = np.split(stored["vectors"], np.cumsum(stored["tokens"])[:-1])
    for ours, expected in zip(pages, vlm.embed(images, pool_factor=2), strict=True):
        assert ours == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_queries_are_written_as_parquet(colpali: Path, vlm: VLM, tmp_path: Path, dtype: str):
    (tmp_path / "queries.txt").write_text("a red circle\n\ntwo é squares\n", encoding="utf-8")
    arguments = ("--queries", tmp_path / "queries.txt", "--query", "a", "--dtype", dtype, "--threads", 1)
    done = run_command("embed", colpali, "--output", tmp_path / "queries.parquet", *arguments)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "queries.parquet")
    texts = ["a", "a red circle", "two é squares"]
    assert table["id"].to_pylist() == texts
    for ours, expected in zip(table["vectors"].to_pylist(), vlm.embed(queries=texts, dtype=dtype), strict=True):
        assert np.array(ours, expected.dtype) == pytest.approx(expected, abs=1 if dtype == "int8" else 1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "out.npz"), "give either images, or queries"),
        (("--output", "out.csv", "--query", "a"), "ends in .npz or .parquet"),
        (("--output", "nowhere/out.npz", "--query", "a"), "a folder that exists"),
        (("--output", "out.npz", "--query", "a", "--dtype", "int4"), "dtype is 'int4'"),
        (("--output", "out.npz", "missing.png"), "missing.png"),
        (("--output", "out.npz", "--queries", "missing.txt"), "missing.txt"),
    ],
)
def test_what_is_refused(colpali: Path, tmp_path: Path, arguments: tuple[str, ...], message: str):
    done = run_command("embed", colpali, *arguments, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_commands_name_the_one_to_use(colpali: Path, bundle: Path, folder: Path, tmp_path: Path):
    for command in (
        ("generate", colpali, "a", "--image", folder / "0.png"),
        ("chat", colpali),
        ("score", colpali, "a"),
    ):
        more = ("--candidate", "b") if command[0] == "score" else ()
        done = run_command(*command, *more, input="a\n")
        assert done.returncode == 2
        assert "onnx-vlm embed" in done.stderr
    done = run_command("embed", bundle, "--query", "a", "--output", tmp_path / "out.npz")
    assert (done.returncode, "use generate" in done.stderr) == (2, True)
    done = run_command("batch", colpali, folder, tmp_path / "out", "--prompt", "a")
    assert (done.returncode, "of the kind embedding; give embed" in done.stderr) == (2, True)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_job_embeds_pages_and_queries(colpali: Path, vlm: VLM, folder: Path, tmp_path: Path, format: str):
    rows = [{"image": str(folder / "0.png")}, {"prompt": "a red circle"}, {"image": str(folder / "9.png")}]
    rows += [{"image": str(folder / "1.png"), "prompt": "a"}, {}]
    write_rows(tmp_path / "rows.jsonl", rows)
    spec = Spec(colpali, Path(), "embed")
    progress = run(Batch(tmp_path / "rows.jsonl", tmp_path / "out", spec, format))
    assert (progress.done, sum(progress.failed.values())) == (5, 3)
    found = read_results(tmp_path / "out")
    if format == "parquet":
        shards = sorted((tmp_path / "out").glob("shard-*.parquet"))
        found = {record["id"]: record for path in shards for record in pq.read_table(path).to_pylist()}
    for id, expected in (("0", vlm.embed(folder / "0.png")), ("1", vlm.embed(queries="a red circle"))):
        assert np.array(found[id]["vectors"]) == pytest.approx(expected[0], abs=1e-6)
        assert found[id]["tokens"] == len(expected[0])
    assert "9.png" in found["2"]["error"]
    assert all("one image for a page, or a prompt for a query" in found[id]["error"] for id in ("3", "4"))


def test_a_job_to_embed_takes_no_prompt(colpali: Path):
    with pytest.raises(InputError, match="no prompt for all rows"):
        Spec(colpali, Path(), "embed", prompt="a")
    with pytest.raises(InputError, match="candidates are for the task score"):
        Spec(colpali, Path(), "embed", candidates=["a"])
