"""The command `bench`, whose figures are looked at, never their size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import run_command
from onnx_vlm.runtime import InputError, bench
from onnx_vlm.runtime.memory import free_memory
from onnx_vlm.runtime.providers.load_options import LoadOptions

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
    assert figures["bandwidth_size"] >= min(1 << 30, free_memory() // 4)
    assert figures["limit_share"] > 0


def test_the_share_of_what_the_memory_allows():
    """5 GB a token at 20 GB a second take 0.25 s; a token in half a second is half as fast."""
    times = dict.fromkeys(("load", "preprocess", "vision", "prefill"), 1.0)
    sizes = {"bandwidth_size": 1, "bandwidth_threads": 1, "cache_bytes": 0, "bundle_bytes": 1, "peak_memory": None}
    figures = bench.Figures(
        provider="cpu", **times, **sizes, decode=0.5, tiles=1, prompt_tokens=9, bandwidth=20e9, token_bytes=5 * 10**9
    )
    assert figures.limit_share == 0.5
    assert dataclasses.replace(figures, decode=0.25).limit_share == 1.0
    assert dataclasses.replace(figures, bandwidth=None).limit_share is None


def test_table(bundle: Path):
    done = run_command("bench", bundle, *FEW)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "load",
        "preprocess",
        "vision",
        "prefill",
        "decode",
        "memory",
        "peak",
    ]


def test_refusals(bundle: Path, tmp_path: Path):
    done = run_command("bench", bundle, "--image", tmp_path / "none.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.png" in done.stderr
    with pytest.raises(InputError, match="cannot be measured"):
        bench.measure(bundle, new_tokens=1)


@pytest.mark.parametrize("new_tokens", [1000, 1_000_000_000])
def test_more_tokens_than_positions_are_refused(bundle: Path, new_tokens: int):
    with pytest.raises(InputError, match=f"positions.*for an answer of {new_tokens}"):
        bench.measure(bundle, options=LoadOptions(threads=1), new_tokens=new_tokens)


def test_more_is_read_than_caches_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "free_memory", lambda: 64 << 30)
    for caches, size in ((0, 1 << 30), (32 << 20, 1 << 30), (500 << 20, 2000 << 20)):
        monkeypatch.setattr(bench, "cache_bytes", lambda caches=caches: caches)
        assert bench.read_size() == size
    monkeypatch.setattr(bench, "free_memory", lambda: 1 << 20)
    assert bench.read_size() == 1 << 19, "half of what is free"
    measured = bench.bandwidth(2)
    assert (measured.size, measured.threads, measured.caches) == (1 << 19, 2, 500 << 20)


def _parts(bundle: Path) -> list[Path]:
    return [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
