"""The command `bench`, whose figures are looked at, never their size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import run_command
from onnx_vlm.runtime import InputError, bench

FEW = ("--new-tokens", 3, "--repeats", 2, "--threads", 1)


def test_json_tells_every_stage(bundle: Path):
    done = run_command("bench", bundle, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.pop("provider") == "cpu"
    assert all(value > 0 for value in figures.values())
    assert {"load", "preprocess", "vision", "prefill", "decode", "prompt_tokens", "peak_memory"} <= figures.keys()
    assert (figures["tiles"], figures["bundle_bytes"]) == (1, sum(f.stat().st_size for f in _parts(bundle)))
    assert figures["token_bytes"] > (bundle / "decoder.onnx.data").stat().st_size
    share = figures["token_bytes"] / figures["bandwidth"] / figures["decode"]
    assert figures["limit_share"] == pytest.approx(share)


def test_table(bundle: Path):
    done = run_command("bench", bundle, *FEW)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["load", "preprocess", "vision", "prefill", "decode", "peak"]


def test_refusals(bundle: Path, tmp_path: Path):
    done = run_command("bench", bundle, "--image", tmp_path / "none.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no picture" in done.stderr
    with pytest.raises(InputError, match="cannot be measured"):
        bench.measure(bundle, new_tokens=1)


def _parts(bundle: Path) -> list[Path]:
    return [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
