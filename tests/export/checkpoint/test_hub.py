"""Checkpoints by an id on the Hub: what is fetched, and what is said when it is not."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import pytest
from helpers import CHECKPOINT, run_command
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from onnx_vlm.export.checkpoint import hub
from onnx_vlm.graphs import CheckpointError


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "google" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given in (CHECKPOINT, str(CHECKPOINT), "google/model", "no-folder", "/no/folder", "./google/none", "a/b/c"):
        assert hub.local(given) == Path(given)


def test_only_what_an_export_reads_is_fetched(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, allow_patterns: tuple[str, ...]) -> str:
        asked.append((name, allow_patterns))
        return str(CHECKPOINT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.local("google/paligemma2-3b-pt-224") == CHECKPOINT
    assert asked == [("google/paligemma2-3b-pt-224", ("*.json", "*.safetensors", "*.jinja"))]


def raised(kind: type[Exception], text: str) -> Exception:
    """An error as the Hub's client raises it, without the response that its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (raised(GatedRepoError, "gated"), "accept its licence at https://huggingface.co/google/model"),
        (raised(RepositoryNotFoundError, "none"), "the Hub has no google/model, or it is private"),
        (raised(LocalEntryNotFoundError, "offline\nand more"), r"could not be fetched from the Hub \(offline\)"),
        (raised(HfHubHTTPError, "broken"), r"could not be fetched from the Hub \(broken\)"),
        (OSError("disk full"), r"could not be fetched from the Hub \(disk full\)"),
    ],
)
def test_what_cannot_be_fetched_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=said) as caught:
        hub.local("google/model")
    assert str(caught.value).startswith("there is no folder google/model")


@pytest.mark.parametrize("name", ["a--b/c", "a..b/c", "a/b.git", "a/b.", "é/ü", "-a/b"])
def test_an_id_that_the_hub_does_not_allow_is_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=f"there is no folder {name}, and {name} is no id on the Hub"):
        hub.local(name)


def test_the_command_says_it_without_a_network(tmp_path: Path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = run_command("export", "google/model", tmp_path / "bundle", env=environment)
    assert done.returncode == 2
    assert "could not be fetched" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
