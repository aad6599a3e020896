"""Answers of batch jobs are those of `VLM.generate` and `VLM.score` alone, through the command too."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapes
from batch_fakes import read_results, write_rows
from helpers import run_command
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.batch import Batch, Spec, run
from onnx_vlm.runtime.batch.records import Recorder
from onnx_vlm.runtime.batch.rows import Reader
from onnx_vlm.runtime.grounding.types import Box, Mask
from onnx_vlm.runtime.results import Generation

ANSWERED, BROKEN = 24, 5  #: images of the folder, and which of them is broken


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images; some are equal, one is broken."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(ANSWERED):
        shapes.draw(shapes.scene(shapes.HELD_OUT + index % 20)).save(folder / f"{index:02}.png")
    (folder / f"{BROKEN:02}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def expected(vlm: VLM, folder: Path) -> dict[str, str | None]:
    """By image, the answer alone."""
    paths = sorted(folder.iterdir())
    return {path.name: None if f"{BROKEN:02}" in path.name else vlm.generate("caption", path).text for path in paths}


def texts(output: Path) -> dict[str, str | None]:
    return {id: record["text"] for id, record in read_results(output).items()}


def test_the_command_answers_about_a_folder(bundle: Path, folder: Path, expected: dict, tmp_path: Path):
    command = ("batch", bundle, folder, tmp_path / "out", "--prompt", "caption", "--shard-rows", 10, "--threads", 1)
    done = run_command(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "out") == expected
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "start"
    assert events[0]["rows"] == ANSWERED
    assert [event["written"] for event in events if event["event"] == "shard"] == [10, 10, 4]
    assert (events[-1]["event"], events[-1]["done"], events[-1]["failed"]) == ("end", ANSWERED, 1)
    assert list(events[-1]["errors"].values()) == [1]
    assert str(folder / f"{BROKEN:02}.png") in read_results(tmp_path / "out")[f"{BROKEN:02}.png"]["error"]
    again = run_command(*command, "--report", tmp_path / "report.html")
    assert again.returncode == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12
    assert all(
        text in page for text in ("<title>out: 23 of 24 rows", "Tokens of an answer", "the image cannot be read")
    )
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert f"{ANSWERED} of {ANSWERED} rows have results" in again.stderr
    other = run_command(*command, "--max-new-tokens", 2)
    assert other.returncode == 2
    assert "has results of another job: its options is" in other.stderr


def test_the_command_that_is_killed_at_random_comes_to_its_end(
    bundle: Path, folder: Path, expected: dict, tmp_path: Path
):
    moments = random.Random(1)
    command = ["batch", bundle, folder, tmp_path / "out", "--prompt", "caption", "--shard-rows", 4, "--threads", 1]
    code = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", *map(str, command)]
    for _ in range(3):
        job = subprocess.Popen(code, stderr=subprocess.DEVNULL)
        written = len(list((tmp_path / "out").glob("shard-*")))
        while job.poll() is None and len(list((tmp_path / "out").glob("shard-*"))) <= written:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.3)
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert texts(tmp_path / "out").items() <= expected.items()
    assert run_command(*command).returncode == 0
    assert texts(tmp_path / "out") == expected


def test_results_are_written_when_the_command_is_stopped(bundle: Path, folder: Path, tmp_path: Path):
    command = ["batch", bundle, folder, tmp_path / "out", "--prompt", "caption", "--json", "--threads", "1"]
    code = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", *map(str, command)]
    # The first shard is written at the end or at the stop; nothing else tells that rows are done.
    job = subprocess.Popen([*code, "--shard-rows", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout is not None
    while "shard" not in job.stdout.readline():
        pass
    job.terminate()
    job.communicate()
    assert job.returncode == 130
    assert texts(tmp_path / "out")


def test_rows_of_many_kinds_in_parquet(vlm: VLM, bundle: Path, folder: Path, tmp_path: Path):
    one, two = folder / "00.png", folder / "01.png"
    name = shapes.scene(shapes.HELD_OUT).things[0].name
    uri = f"data:image/png;base64,{base64.b64encode(two.read_bytes()).decode()}"
    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5}
    rows = [
        {"id": "boxes", "image": str(one), "prompt": f"detect {name}"},
        {"id": "uri", "image": uri, "prompt": "caption", "max_new_tokens": 2},
        {"id": "beams", "image": str(one), "prompt": "caption", **beams},
        {"id": "drawn", "image": str(one), "prompt": "caption", "do_sample": True, "seed": 3, "temperature": 5.0},
        {"id": "bad option", "image": str(one), "prompt": "caption", "num_beams": 0},
        {"id": "logprobs", "image": str(one), "prompt": "caption", "top_logprobs": 1, "stop": "and"},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    spec = Spec(bundle, Path(), carry=["prompt", "num_beams"])
    progress = run(Batch(tmp_path / "rows.jsonl", tmp_path / "out", spec, format="parquet"))
    assert progress.failed.total() == 1
    (path,) = (tmp_path / "out").glob("shard-*.parquet")
    records = {record["id"]: record for record in pq.read_table(path).to_pylist()}
    assert records["bad option"]["error"] == "num_beams is 0; give 1 or more"
    assert (records["beams"]["prompt"], records["beams"]["num_beams"]) == ("caption", "3")
    alone = vlm.generate(f"detect {name}", one)
    assert records["boxes"]["boxes"] == [dataclasses.asdict(box) for box in alone.boxes] != []
    alone = vlm.generate("caption", two, max_new_tokens=2)
    assert (records["uri"]["text"], records["uri"]["finish_reason"]) == (alone.text, "length")
    assert (records["uri"]["tokens"], records["uri"]["prompt_tokens"]) == (2, alone.prompt_tokens)
    alone = vlm.generate("caption", one, **beams)
    assert records["beams"]["score"] == pytest.approx(alone.score, rel=1e-4)
    assert [other["text"] for other in records["beams"]["alternatives"]] == [o.text for o in alone.alternatives]
    assert records["drawn"]["text"] == vlm.generate("caption", one, do_sample=True, seed=3, temperature=5.0).text
    alone = vlm.generate("caption", one, top_logprobs=1, stop="and")
    assert records["logprobs"]["text"] == alone.text
    noted = [(token["id"], token["top"][0]["id"]) for token in records["logprobs"]["logprobs"]]
    assert noted == [(token.id, token.top[0][0]) for token in alone.logprobs]


def test_scores(vlm: VLM, bundle: Path, folder: Path, tmp_path: Path):
    answers = ["a green triangle", "a red circle"]
    done = run_command(
        *("batch", bundle, folder, tmp_path / "out", "--prompt", "caption", "--task", "score", "--threads", 1),
        *(word for answer in answers for word in ("--candidate", answer)),
    )
    assert done.returncode == 0, done.stderr
    record = read_results(tmp_path / "out")["00.png"]
    scores = vlm.score("caption", folder / "00.png", answers)
    assert [entry["log_probability"] for entry in record["scores"]] == pytest.approx(
        [score.log_probability for score in scores], rel=1e-4
    )
    best = max(scores, key=lambda score: score.log_probability)
    assert (record["text"], record["score"]) == (best.text, pytest.approx(best.log_probability, rel=1e-4))


def test_scores_of_a_csv(vlm: VLM, bundle: Path, folder: Path, tmp_path: Path):
    own = ["a blue square", "two red circles"]
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "image", "prompt", "candidates"])
        rows.writerow(["list", folder / "00.png", "caption", json.dumps(own)])
        rows.writerow(["text", folder / "01.png", "caption", "a red circle"])
        rows.writerow(["without", folder / "02.png", "", ""])
        rows.writerow(["broken", folder / f"{BROKEN:02}.png", "caption", json.dumps(own)])
    command = ("batch", bundle, table, tmp_path / "out", "--task", "score", "--threads", 1)
    done = run_command(
        *command, "--prompt", "caption", "--candidate", "a green triangle", "--candidate", "a red circle"
    )
    assert done.returncode == 0, done.stderr
    records = read_results(tmp_path / "out")
    expected = {"list": own, "text": ["a red circle"], "without": ["a green triangle", "a red circle"]}
    for index, (id, candidates) in enumerate(expected.items()):
        scores = vlm.score("caption", folder / f"{index:02}.png", candidates)
        assert [entry["text"] for entry in records[id]["scores"]] == candidates
        values = [entry["log_probability"] for entry in records[id]["scores"]]
        assert values == pytest.approx([score.log_probability for score in scores], rel=1e-4)
        assert records[id]["text"] == max(scores, key=lambda score: score.log_probability).text
    assert records.keys() == {*expected, "broken"}
    assert (records["broken"]["scores"], records["broken"]["text"]) == (None, None)
    assert "the image cannot be read" in records["broken"]["error"]


def test_masks_are_run_lengths():
    pixels = np.zeros((2, 3), bool)
    pixels[:, 1] = True
    box = Box("cat", 1, 0, 2, 2)
    answer = Generation("cat", [1], "stop", 1, [box], [Mask("cat", box, (7, 8), pixels)], timings={"decode": 1.0})
    reader = Reader(Path(), "segment cat")
    (row,) = reader.rows([{}])
    (mask,) = Recorder("generate", reader).record(row, answer)["masks"]
    shape = {"size": [2, 3], "counts": [2, 2, 2]}
    assert mask == {"label": "cat", "box": dataclasses.asdict(box), "codes": [7, 8], **shape}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "caption", "--format", "xml"), "the format is 'xml'; give one of jsonl, parquet"),
        (("--prompt", "caption", "--task", "sing"), "the task is 'sing'; give one of generate, score"),
        (("--prompt", "caption", "--max-rows", "0"), "max_rows is 0; give 1 or more"),
        (("--prompt", "caption", "--shard-rows", "0"), "shard_rows is 0; give 1 or more"),
        (("--prompt", "caption", "--column", "image"), "--column is 'image'; give ROLE=NAME"),
        ((), "the input has no column 'prompt'"),
    ],
)
def test_bad_use(bundle: Path, folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str):
    done = run_command("batch", bundle, folder, tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
