"""Inputs of each kind, and what their rows ask."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import echo, read_results, write_rows
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime.batch.rows import Reader
from onnx_vlm.runtime.batch.sources import open_source

PROMPTS = [{"name": f"n{index}", "prompt": f"row {index}", "max_new_tokens": index + 1} for index in range(70)]


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PROMPTS[0]))
        writer.writeheader()
        writer.writerows(PROMPTS)
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(PROMPTS), path, row_group_size=30)
    return path


def write_dataset(path: Path) -> Path:
    """As `datasets.Dataset.save_to_disk` writes it."""
    path = path.with_suffix("")
    path.mkdir()
    for name, rows in (("data-00000-of-00002.arrow", PROMPTS[:50]), ("data-00001-of-00002.arrow", PROMPTS[50:])):
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path / name, table.schema) as stream:
            stream.write_table(table)
    files = [{"filename": f"data-0000{index}-of-00002.arrow"} for index in range(2)]
    (path / "state.json").write_text(json.dumps({"_data_files": files, "_indices_data_files": None}))
    return path


WRITERS = {
    "jsonl": lambda path: write_rows(path, PROMPTS),
    "csv": write_csv,
    "parquet": write_parquet,
    "dataset": write_dataset,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_rows_of_each_kind(bundle: Path, tmp_path: Path, kind: str, format: str):
    rows = WRITERS[kind](tmp_path / f"rows.{kind}")
    for size in (30, 70):  # the second time nothing is left
        progress = echo(
            bundle,
            rows,
            tmp_path / "out",
            columns={"id": "name"},
            carry=["max_new_tokens"],
            format=format,
            shard_rows=size,
        )
        assert (progress.total, progress.done) == (70, 70)
    if format == "parquet":
        records = [row for path in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        by_id = {record["id"]: record for record in records}
        assert len(records) == len(by_id)
    else:
        by_id = read_results(tmp_path / "out")
    assert [by_id[row["name"]]["text"] for row in PROMPTS] == [row["prompt"] for row in PROMPTS]
    assert [int(by_id[row["name"]]["max_new_tokens"]) for row in PROMPTS] == list(range(1, 71))
    typed = isinstance(by_id["n0"]["max_new_tokens"], int)
    assert typed == (kind in ("parquet", "dataset") or (kind, format) == ("jsonl", "jsonl"))


def test_options_of_a_row(tmp_path: Path):
    reader = Reader(tmp_path, "a prompt")
    cells = {"max_new_tokens": "5", "do_sample": "True", "stop": '["a", "b"]', "temperature": 0.5, "top_k": None}
    (row,) = reader.rows([cells])
    assert reader.question(row).options == {
        "max_new_tokens": 5,
        "do_sample": True,
        "stop": ["a", "b"],
        "temperature": 0.5,
    }


def test_images_of_each_kind(tmp_path: Path):
    reader = Reader(tmp_path, "a prompt")
    data = b"\x89PNG"
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    cells = [
        {"image": "a.png", "images": None},
        {"image": data},
        {"image": uri},
        {"image": {"bytes": data, "path": "b.png"}},
        {"image": {"bytes": None, "path": "b.png"}},
        {"images": ["a.png", uri]},
        {"images": '["a.png", "b.png"]'},
        {"prompt": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "x"}]}]},
    ]
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    expected = [[a], [data], [data], [data], [b], [a, data], [a, b], [a]]
    assert [reader.question(row).request.images for row in reader.rows(cells)] == expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"image": "https://example.org/a.png"}, "URLs are not read; --allow-media-domain"),
        ({"image": "file:///etc/passwd"}, "URLs are not read"),
        ({"image": "data:image/png;base64,!"}, "is not base64"),
        ({"image": "data:image/png"}, "has no comma"),
        ({"prompt": 5}, "a prompt is a text or a list of chat messages"),
        ({"prompt": ["a"]}, "a prompt is a text or a list of chat messages"),
        ({"prompt": "\udcff"}, "is not UTF-8"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, cells: dict, message: str):
    reader = Reader(tmp_path, "a prompt")
    (row,) = reader.rows([cells])
    with pytest.raises(InputError, match=message):
        reader.question(row)


def test_bad_lines_are_rows_that_fail(bundle: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"prompt": "a"}\n\n{"prompt": \n[1]\n\xff\n{"prompt": "b"}')
    assert echo(bundle, rows, tmp_path / "out").failed.total() == 3
    results = read_results(tmp_path / "out")
    assert [results[str(index)]["text"] for index in range(5)] == ["a", None, None, None, "b"]
    assert results["1"]["error"].startswith("line 3 is not JSON")
    csv_rows = tmp_path / "rows.csv"
    csv_rows.write_bytes(b"prompt\nb\xffd\na,b\nc\n")
    assert echo(bundle, csv_rows, tmp_path / "csv").failed.total() == 2
    assert read_results(tmp_path / "csv")["1"]["error"] == "line 3 has more cells than the 1 columns"


def test_images_of_a_folder_come_by_name(tmp_path: Path):
    for name in ("b.png", "a/2.JPG", "a/1.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [row["id"] for row in open_source(tmp_path).read(None)] == ["a/1.webp", "a/2.JPG", "b.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.csv", "there is no input"), ("rows.xlsx", "is of no known kind"), ("bad.parquet", "cannot be read")],
)
def test_inputs_that_are_refused(tmp_path: Path, name: str, message: str):
    (tmp_path / "rows.xlsx").touch()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / name)


def test_columns_that_are_missing_are_told_of_before_any_work(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"question": "a"}])
    with pytest.raises(InputError, match="has no column 'prompt', but 'question'; give a prompt"):
        echo(bundle, rows, tmp_path / "out")
    assert echo(bundle, rows, tmp_path / "out", columns={"prompt": "question"}).done == 1
    table = write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="has no column 'photo'; it has 'name'"):
        echo(bundle, table, tmp_path / "csv", columns={"image": "photo"})
    with pytest.raises(InputError, match="there is no role 'picture'"):
        echo(bundle, table, tmp_path / "csv", columns={"picture": "name"})
    with pytest.raises(InputError, match="'text' cannot be carried"):
        echo(bundle, rows, tmp_path / "carried", prompt="a", carry=["text"])


def test_urls_of_other_hosts_fail_in_their_row(bundle: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "image": "https://example.com/a.png"}])
    assert echo(bundle, rows, tmp_path / "out", media_domains=["example.org"]).failed.total() == 1
    assert "allowed are example.org" in read_results(tmp_path / "out")["0"]["error"]
