"""Calibrated bundles: their loss, what they say of it, and folders that cannot be calibrated with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from helpers import CHECKPOINT, CHECKPOINTS, run_command
from onnx_vlm.export import export_model
from onnx_vlm.export.calibration import calibrate, pictures
from onnx_vlm.graphs import ExportError, expansion, manifest

IMAGES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes that the checkpoints were trained on, with a question to each."""
    folder, prompts = tmp_path_factory.mktemp("pictures"), []
    for seed in range(IMAGES):
        scene = shapes.scene(seed)
        shapes.draw(scene).save(folder / f"{seed:02d}.png")
        questions = shapes.questions(scene)
        prompts.append(questions[seed % len(questions)].prompt)
    (folder / pictures.PROMPTS).write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    output = tmp_path_factory.mktemp("calibrated") / "bundle"
    done = run_command("export", CHECKPOINT, output, "--precision", "int4", "--calibrate", folder)
    assert done.returncode == 0, done.stderr
    return output


def test_a_calibrated_bundle_loses_less_at_the_same_size(calibrated: Path, bundles: Callable[..., Path]):
    plain = bundles("paligemma2", "int4")
    ours, theirs = (manifest.load(bundle) for bundle in (calibrated, plain))
    assert ours.proof.loss.logits < 0.9 * theirs.proof.loss.logits  # on the proof's pictures, which it has not seen
    sizes, others = ({name: file.size for name, file in made.files.items()} for made in (ours, theirs))
    assert sizes == {name: size for name, size in others.items() if name in sizes}
    assert {*others} - {*sizes} == {expansion.GRAPH, expansion.TABLE}  # calibrated scales are no multiples
    changed = {name for name, file in ours.files.items() if file.sha256 != theirs.files[name].sha256}
    assert {name for name in changed if not name.startswith("proof/")} == {"decoder.onnx.data"}
    assert theirs.calibration is None


def test_inspect_and_verify(calibrated: Path):
    assert manifest.load(calibrated).calibration == manifest.Calibration(IMAGES, IMAGES)
    assert f"{IMAGES} images and {IMAGES} prompts" in " ".join(run_command("inspect", calibrated).stdout.split())
    verified = run_command("verify", calibrated, "--threads", "1")
    assert verified.returncode == 0, verified.stdout


def test_equal_pictures_make_equal_bytes(calibrated: Path, folder: Path, tmp_path: Path):
    again = export_model(CHECKPOINT, tmp_path / "again", precision="int4", calibrate=folder, prove=False)
    one, other = ((bundle / "decoder.onnx.data").read_bytes() for bundle in (calibrated, again))
    assert one == other


def test_a_large_decoder_is_calibrated_in_parts(
    calibrated: Path, folder: Path, tmp_path: Path, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """Each product is a part of its own, the head's too, which computes nothing for a later one."""
    monkeypatch.setattr(calibrate, "AT_ONCE", 1)
    made = export_model(CHECKPOINT, tmp_path / "made", precision="int4", calibrate=folder, prove=False)
    ours, whole, plain = (
        np.fromfile(bundle / "decoder.onnx.data", np.uint8)
        for bundle in (made, calibrated, bundles("paligemma2", "int4"))
    )
    assert (ours != whole).mean() < 0.1 * (ours != plain).mean()  # sums of other parts are rounded otherwise


def test_models_that_make_vectors_are_calibrated_with_the_examples_where_there_are_no_prompts(
    folder: Path, tmp_path: Path, bundles: Callable[..., Path]
):
    (tmp_path / "pictures").mkdir()
    for seed in range(4):
        (tmp_path / "pictures" / f"{seed}.png").write_bytes((folder / f"{seed:02d}.png").read_bytes())
    made = export_model(CHECKPOINTS / "colpali", tmp_path / "bundle", precision="int4", calibrate=tmp_path / "pictures")
    ours, plain = (manifest.load(bundle) for bundle in (made, bundles("colpali", "int4")))
    assert ours.calibration.images == 4
    assert ours.proof.loss.vectors < plain.proof.loss.vectors


def test_pictures_are_taken_evenly_from_a_large_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "MOST", 3)
    for seed in range(7):
        shapes.draw(shapes.scene(seed), 28, 28).save(tmp_path / f"{seed}.PNG")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    found = pictures.find(tmp_path)
    assert [path.name for path in found.paths] == ["0.PNG", "2.PNG", "4.PNG"]
    asked = list(found.questions(("one", "two")))
    assert [prompt for _, prompt in asked] == ["one", "two", "one"]
    assert np.asarray(asked[1][0]).shape == (28, 28, 3)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "is no folder; give --calibrate a folder of pictures"),
        ({}, "has no pictures; give some like those to be asked about: .apng, "),
        ({"broken.png": b"\x89PNG\r\n\x1a\n"}, "broken.png: the image cannot be read"),
        ({"prompts.txt": b"\xff\xfe"}, "prompts.txt is not UTF-8"),
        ({"prompts.txt": b" \n"}, "prompts.txt has no prompts; write one a line"),
    ],
)
def test_folders_that_cannot_be_calibrated_with(files: dict[str, bytes] | None, said: str, tmp_path: Path):
    given = tmp_path / "given"
    if files is not None:
        given.mkdir()
        for name, content in files.items():
            (given / name).write_bytes(content)
        if pictures.PROMPTS in files:
            shapes.draw(shapes.scene(0), 28, 28).save(given / "picture.png")
    with pytest.raises(ExportError) as raised:
        export_model(CHECKPOINT, tmp_path / "output", precision="int4", calibrate=given)
    assert said in str(raised.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_only_int4_is_calibrated(precision: str, folder: Path, tmp_path: Path):
    with pytest.raises(ExportError, match=f"decoder of int4, and this one is {precision}"):
        export_model(CHECKPOINT, tmp_path / "output", precision=precision, calibrate=folder)


def test_a_prompt_that_is_too_long_is_named_and_nothing_stays(folder: Path, tmp_path: Path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "picture.png").write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "given" / pictures.PROMPTS).write_text("caption " * 9000)
    with pytest.raises(ExportError, match=r"'caption caption .* is too long to be calibrated with: [0-9]+ tokens"):
        export_model(CHECKPOINT, tmp_path / "output", precision="int4", calibrate=tmp_path / "given", prove=False)
    assert not (tmp_path / "output").exists()
