"""Bundles by a URL that fsspec opens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import shapes
from batch_fakes import read_results
from helpers import run_command
from onnx_vlm.graphs import BundleError, InputError
from onnx_vlm.runtime.hub.find import find, name_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that bundles are fetched into."""
    monkeypatch.setenv("ONNX_VLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bundles"


@pytest.fixture
def remote(bundle: Path) -> Iterator[str]:
    """The URL of a folder in memory with the bundle, and what is no part of it."""
    memory, url = fsspec.filesystem("memory"), "memory://remote/bundle"
    memory.put(str(bundle), url, recursive=True)
    memory.pipe(f"{url}/huge.bin", b"not of the bundle")
    yield url
    memory.rm("/remote", recursive=True)


def test_what_the_manifest_names_is_fetched_once(bundle: Path, remote: str, cache: Path):
    folder = find(remote)
    names = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert names == {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    fsspec.filesystem("memory").rm(f"{remote}/tokenizer.json")
    assert find(f"{remote}/") == folder == find(f"file://{bundle}")
    assert list(cache.iterdir()) == [folder]
    assert name_of(remote) == name_of(f"{remote}/") == "bundle"


def damage(memory: fsspec.AbstractFileSystem, url: str) -> None:
    text = memory.cat(f"{url}/tokenizer.json")
    memory.pipe(f"{url}/tokenizer.json", b"[" + text[1:])


def lose(memory: fsspec.AbstractFileSystem, url: str) -> None:
    memory.rm(f"{url}/decoder.onnx")


def escape(memory: fsspec.AbstractFileSystem, url: str) -> None:
    manifest = json.loads(memory.cat(f"{url}/manifest.json"))
    manifest["files"]["../../escaped"] = {"size": 17, "sha256": "0"}
    memory.pipe(f"{url}/manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage, "tokenizer.json of memory://.* is damaged"),
        (lose, "or it lacks a file: .*decoder.onnx"),
        (escape, "escaped: the path leaves the folder"),
    ],
)
def test_half_a_bundle_is_refused_and_nothing_stays(remote: str, cache: Path, change, message: str):
    change(fsspec.filesystem("memory"), remote)
    with pytest.raises(BundleError, match=message):
        find(remote)
    assert list(cache.iterdir()) == []


def test_urls_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BundleError, match="there is no bundle at memory://gone"):
        find("memory://gone")
    with pytest.raises(InputError, match=r"nonsense://a cannot be opened: .*nonsense"):
        find("nonsense://a")
    with pytest.raises(InputError, match="memory:// names no folder"):
        find("memory://")
    with pytest.raises(InputError, match="memory://a is a URL; a revision is of an id"):
        find("memory://a", "main")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"fetching s3://a/b needs another package: .*s3fs"):
        find("s3://a/b")


def test_the_command_batch_takes_a_url(bundle: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    shapes.draw(shapes.scene(shapes.HELD_OUT)).save(tmp_path / "images" / "0.png")
    texts = []
    for name, output in ((bundle, "one"), (f"file://{bundle}", "two")):
        command = ("batch", name, tmp_path / "images", tmp_path / output, "--prompt", "caption", "--threads", 1)
        done = run_command(*command)
        assert done.returncode == 0, done.stderr
        texts.append(read_results(tmp_path / output)["0.png"]["text"])
    assert texts[0] == texts[1] != ""
    assert run_command(*command[:3], tmp_path / "one", *command[4:]).returncode == 0  # the same bundle, so the same job
    missing = run_command("batch", f"file://{tmp_path}/gone", *command[2:])
    assert missing.returncode == 2
    assert "there is no bundle at file://" in missing.stderr
    assert "Traceback" not in missing.stderr
