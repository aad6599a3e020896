"""Bundles held to their proof, and every way to damage one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import run_command
from onnx_vlm.graphs import contract, manifest
from onnx_vlm.runtime import BundleError, load
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.verify import verify

ONE_THREAD = LoadOptions(threads=1)
STAGES = [
    "files",
    "provider",
    "input_ids",
    "pixel_values",
    "vision_features",
    "image_embeds",
    "prefill logits",
    "step logits",
    "tokens",
]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    data = json.loads((folder / manifest.FILE_NAME).read_text())
    change(data)
    (folder / manifest.FILE_NAME).write_text(json.dumps(data))


def flip(path: Path, place: int) -> None:
    """Change one byte of a file, whose size stays."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["paligemma", "paligemma2", "perception_lm", "kosmos2"])
def test_every_family_is_proven(bundles: Callable[..., Path], name: str, figure: Callable[[str], None]):
    checks = verify(bundles(name), ONE_THREAD)
    assert [check.name for check in checks] == STAGES
    assert all(check.passed for check in checks), checks
    assert checks[-1].error == 0
    worst = max(checks[2:-1], key=lambda check: check.error)
    figure(f"{name}: largest relative error of a stage {worst.error:.1e} ({worst.name})")
    assert worst.error < 1e-5


def test_the_command_prints_a_table_and_one_json_object(bundle: Path):
    done = run_command("verify", bundle)
    assert (done.returncode, "passed" in done.stderr) == (0, True), done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["ok"] * len(STAGES)
    done = run_command("verify", bundle, "--json", "--threads", "1")
    told = json.loads(done.stdout)
    assert (done.returncode, told["passed"], [check["name"] for check in told["checks"]]) == (0, True, STAGES)


@pytest.mark.parametrize(
    "name", ["decoder.onnx.data", "embed_tokens.npy", "tokenizer.json", "vision_encoder.onnx", "proof/expected.npz"]
)
def test_an_edited_file_is_named(copy: Path, name: str):
    flip(copy / name, -40)
    done = run_command("verify", copy)
    assert (done.returncode, "failed" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert name in done.stdout
    assert "sha256 is not that of the manifest" in " ".join(done.stdout.split())


def test_swapped_files_are_named(copy: Path, bundles: Callable[..., Path]):
    """Of the same size: two halves of one file."""
    path = copy / "decoder.onnx.data"
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 2 :] + data[: len(data) // 2])
    (check,) = verify(copy)
    assert (check.name, check.passed) == ("decoder.onnx.data", False)
    shutil.copyfile(bundles("paligemma") / "decoder.onnx", copy / "decoder.onnx")
    with pytest.raises(BundleError, match=r"decoder\.onnx: \d+ bytes, \d+ are expected"):
        verify(copy)


def test_weights_that_are_not_the_source_models_fail_where_they_are(copy: Path):
    """The checksums made anew, as someone who means harm would."""
    path = copy / "projector.onnx.data"
    path.write_bytes((np.fromfile(path, np.float32) * 1.01).tobytes())
    edit(copy, lambda data: data["files"][path.name].update(sha256=manifest.sha256(path)))
    failed = [check for check in verify(copy, ONE_THREAD) if not check.passed]
    assert [check.name for check in failed] == ["image_embeds"]
    assert failed[0].error == pytest.approx(0.01, rel=0.3)


def test_the_first_other_token_is_shown_with_its_margin(copy: Path):
    path = copy / contract.PROOF_ARRAYS
    with np.load(path) as stored:
        arrays = dict(stored)
    other = arrays["0/logits"][2].argsort()[-2]
    arrays["0/logits"][2][other] = arrays["0/logits"][2].max() * 1.05
    np.savez(path, **arrays)
    sealed(copy, contract.PROOF_ARRAYS)
    tokens = verify(copy, ONE_THREAD)[-1]
    assert not tokens.passed
    assert re.match(rf"(\d+) of \d+ equal; token 3: \d+ instead of {other}, margin ", tokens.note)


def drop(arrays: dict[str, np.ndarray]) -> None:
    del arrays["1/logits"]


def empty(arrays: dict[str, np.ndarray]) -> None:
    for name in ("0/token_ids", "0/logits"):
        arrays[name] = arrays[name][:0]


def shorten(arrays: dict[str, np.ndarray]) -> None:
    arrays["0/logits"] = arrays["0/logits"][:, :7]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop, "1/logits: missing"),
        (empty, r"0/token_ids: int64\(0\) is empty"),
        (shorten, r"0/logits: float32\(\d, 7\) should be logits: float32\(new tokens, 1536\)"),
        (lambda arrays: arrays.clear(), "0/input_ids: missing"),
    ],
)
def test_a_proof_that_does_not_fit_is_named(copy: Path, change: Callable[[dict], object], said: str):
    path = copy / contract.PROOF_ARRAYS
    with np.load(path) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(BundleError, match=rf"does not fit the bundle; export it again:\n(.*\n)*  {said}"):
        verify(sealed(copy, contract.PROOF_ARRAYS), ONE_THREAD)


@pytest.mark.parametrize("name", [contract.PROOF_ARRAYS, contract.PROOF_IMAGE, contract.proof_image(1)])
@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04 and then nothing", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_a_proof_that_does_not_load_is_named(copy: Path, name: str, data: bytes):
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match="does not load"):
        verify(sealed(copy, name), ONE_THREAD)


def sealed(folder: Path, name: str) -> Path:
    """The bundle with the size and checksum of a file made anew."""
    path = folder / name
    entry = {"size": path.stat().st_size, "sha256": manifest.sha256(path)}
    edit(folder, lambda data: data["files"][name].update(entry))
    return folder


def test_a_proof_of_format_7_is_read(copy: Path):
    """It has one prompt, arrays of the source model as it is, and no names of cases."""
    path = copy / contract.PROOF_ARRAYS
    with np.load(path) as stored:
        first = {name.removeprefix("0/"): stored[name] for name in stored.files if name.startswith("0/")}
    np.savez(path, **first)
    edit(copy, lambda data: data.update(proof={"prompt": data["proof"]["prompts"][0]}))
    assert all(check.passed for check in verify(sealed(copy, contract.PROOF_ARRAYS), ONE_THREAD))


def test_a_bundle_without_proof_says_what_to_do(copy: Path):
    edit(copy, lambda data: data.update(proof=None))
    done = run_command("verify", copy)
    assert done.returncode == 2
    assert "--checkpoint" in done.stderr
    shutil.rmtree(copy / "proof")
    with pytest.raises(BundleError, match=r"proof/expected\.npz: the file is missing"):
        verify(copy)


def test_no_outside_file_is_read_as_weights(copy: Path):
    """A graph whose weights' path leaves the folder."""
    path, inside, outside = copy / "decoder.onnx", b"decoder.onnx.data", b"../er.onnx.data.x"
    (copy / "decoder.onnx.data").rename(copy.parent / "er.onnx.data.x")
    shutil.copyfile(copy.parent / "er.onnx.data.x", copy / "decoder.onnx.data")
    path.write_bytes(path.read_bytes().replace(inside, outside))
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["image"].update(height=10**9), "image: tiles of 1000000000 x 56, the graph takes 56 x 56"),
        (lambda data: data["graphs"]["decoder"]["outputs"][0].update(shape=["batch", "kept", 10**12]), "logits"),
        (lambda data: data["generation"].update(max_positions=-1), "generation.max_positions: -1"),
        (lambda data: data["files"]["decoder.onnx"].update(size=10**15), "1000000000000000 are expected"),
    ],
)
def test_an_absurd_size_is_named(copy: Path, change: Callable[[dict], object], said: str):
    edit(copy, change)
    with pytest.raises(BundleError, match=said):
        load(copy)


def test_a_table_of_another_width_is_named(copy: Path):
    path = copy / contract.EMBED_TOKENS
    np.save(path, np.load(path).reshape(-1, 64))
    with pytest.raises(BundleError, match=r"embed_tokens\.npy: rows of 64, the decoder takes 128"):
        load(copy)
