"""What the command says of a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run_command
from onnx_vlm.graphs import manifest


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("paligemma2", ("paligemma2 (paligemma)", "56 x 56", "texts", "location tokens")),
        ("perception_lm", ("up to 4 tiles of 56 x 56", "32 frames of 56 x 56", "conversations", "none")),
        ("kosmos2", ("kosmos2 (kosmos-2)", "phrases with patch tokens", "vision_features: float32(tiles, 17, 128)")),
    ],
)
def test_a_bundle_is_described(bundles: Callable[..., Path], name: str, said: tuple[str, ...]):
    done = run_command("inspect", bundles(name), env={"COLUMNS": "200", "PATH": ""})
    assert done.returncode == 0, done.stderr
    files = [path for path in bundles(name).rglob("*") if path.is_file() and path.name != manifest.FILE_NAME]
    whole = sum(path.stat().st_size for path in files)
    for part in (*said, "past_key_values.0-3.key/value: float32(batch, ", f"{whole / 1e6:.1f} MB", "fp32", "decoder"):
        assert part in done.stdout, part


def test_json_is_the_manifest(bundle: Path):
    done = run_command("inspect", bundle, "--json")
    assert json.loads(done.stdout) == json.loads((bundle / manifest.FILE_NAME).read_text())


def test_what_is_no_bundle_is_refused(tmp_path: Path):
    done = run_command("inspect", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no manifest.json" in done.stderr.replace("\n", " ")
