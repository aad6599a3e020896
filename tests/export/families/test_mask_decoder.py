"""The decoder of masks: read from weights in the published layout, against the network written anew."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
import torch
from helpers import CHECKPOINT, CHECKPOINTS, run_command
from onnx_vlm.export import export_model
from onnx_vlm.graphs import BundleError, CheckpointError, contract, manifest
from onnx_vlm.runtime import draw, load
from onnx_vlm.runtime.inputs import Request
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.scheduling import Scheduler
from onnx_vlm.runtime.verify import verify
from PIL import Image
from torch.nn.functional import conv2d, pad

DEPTH = 24  #: the published codebook has 512 numbers a code


def published() -> dict[str, np.ndarray]:
    """Random weights in the layout of `vae-oid.npz`, its encoder's besides, scaled so that masks have an inside."""
    random = np.random.default_rng(0)
    kernels = {"decoder.0": (128, DEPTH, 1, 1), "decoder.12": (1, 16, 1, 1), "encoder.0": (128, 1, 4, 4)}
    for block in (2, 3):
        kernels |= {f"decoder.{block}.net.{place}": (128, 128, size, size) for place, size in ((0, 3), (2, 3), (4, 1))}
    widths = (128, 128, 64, 32, 16)
    kernels |= {f"decoder.{4 + 2 * i}": (widths[i], widths[i + 1], 4, 4) for i in range(4)}
    arrays = {"_vq_vae._embedding": random.normal(0, 1, (128, DEPTH)).astype(np.float32)}
    for name, shape in kernels.items():
        transposed = name in ("decoder.4", "decoder.6", "decoder.8", "decoder.10")
        seen = shape[0] * 4 if transposed else shape[1] * shape[2] * shape[3]
        arrays[f"{name}.weight"] = random.normal(0, (2 / seen) ** 0.5, shape).astype(np.float32)
        bias = shape[1] if transposed else shape[0]
        arrays[f"{name}.bias"] = random.normal(0, 0.1, bias).astype(np.float32)
    return arrays


def reference(arrays: dict[str, np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Masks (masks, 64, 64) of codes, with channels last and kernels (height, width, in, out), as the authors compute
    them in flax; a transposed convolution is a convolution of its input with zeros between, its kernel turned around.
    """

    def convolve(values: torch.Tensor, name: str, margin: int) -> torch.Tensor:
        kernel = torch.from_numpy(arrays[f"{name}.weight"]).permute(2, 3, 1, 0)
        values = pad(values, (0, 0, margin, margin, margin, margin))
        out = conv2d(values.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)).permute(0, 2, 3, 1)
        return out + torch.from_numpy(arrays[f"{name}.bias"])

    def enlarge(values: torch.Tensor, name: str) -> torch.Tensor:
        # The array's axes (2, 3, 1, 0) are flax's (height, width, out, in) with transpose_kernel=True.
        kernel = torch.from_numpy(arrays[f"{name}.weight"]).permute(2, 3, 1, 0).flip(0, 1)
        masks, rows, columns, width = values.shape
        spread = torch.zeros(masks, 2 * rows - 1, 2 * columns - 1, width)
        spread[:, ::2, ::2] = values
        spread = pad(spread, (0, 0, 2, 2, 2, 2))
        patches = spread.unfold(1, 4, 1).unfold(2, 4, 1)  # masks, rows, columns, in, height, width
        return torch.einsum("mrcihw,hwoi->mrco", patches, kernel) + torch.from_numpy(arrays[f"{name}.bias"])

    values = torch.from_numpy(arrays["_vq_vae._embedding"][codes.ravel()]).reshape(len(codes), 4, 4, -1)
    values = convolve(values, "decoder.0", 0).relu()
    for block in (2, 3):
        inner = convolve(values, f"decoder.{block}.net.0", 1).relu()
        inner = convolve(inner, f"decoder.{block}.net.2", 1).relu()
        values = values + convolve(inner, f"decoder.{block}.net.4", 0)
    for layer in (4, 6, 8, 10):
        values = enlarge(values, f"decoder.{layer}").relu()
    return convolve(values, "decoder.12", 0)[..., 0].numpy()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vae-oid.npz"
    np.savez(path, **published())
    return path


@pytest.fixture(scope="module")
def drawing(weights: Path) -> Path:
    """A bundle with a decoder of masks."""
    return export_model(CHECKPOINT, weights.parent / "bundle", precision="int8", mask_decoder=weights)


def test_masks_are_those_of_the_network_written_anew(drawing: Path, figure: Callable[[str], None]):
    codes = np.random.default_rng(1).integers(0, 128, (5, 16))
    ours, theirs = load(drawing, threads=1).pipeline.engine.masks(codes), reference(published(), codes)
    assert ours.shape == (5, 64, 64)
    assert 0.05 < (theirs > 0).mean() < 0.95
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    figure(f"mask decoder: largest error {error:.1e} of the largest value")
    assert error < 1e-5


def test_the_fourth_graph_is_sealed_proven_and_described(drawing: Path):
    made = manifest.load(drawing)
    assert [*made.graphs] == [*contract.GRAPHS, contract.MASK_DECODER]
    assert made.precision[contract.MASK_DECODER] == "fp32"
    assert made.files["mask_decoder.onnx.data"].sha256 == manifest.sha256(drawing / "mask_decoder.onnx.data")
    checks = {check.name: check for check in verify(drawing, LoadOptions(threads=1))}
    assert checks["masks"].error < 1e-5
    assert all(check.passed for check in checks.values())
    told = run_command("inspect", drawing, env={"COLUMNS": "200", "PATH": ""}).stdout
    assert "mask_codes: int64(masks, 16)" in told
    assert "codes and pixels" in told
    path = drawing.parent / "damaged"
    path.mkdir()
    for file in drawing.rglob("*"):
        if file.is_file():
            (path / file.relative_to(drawing)).parent.mkdir(exist_ok=True)
            (path / file.relative_to(drawing)).write_bytes(file.read_bytes())
    data = path / "mask_decoder.onnx.data"
    values = np.fromfile(data, np.float32)
    data.write_bytes((-values).tobytes())
    (damaged,) = verify(path, LoadOptions(threads=1))
    assert damaged.name == "mask_decoder.onnx.data"
    data.unlink()
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx\.data: the file is missing"):
        load(path)


def test_an_answer_with_codes_has_masks_of_the_whole_picture(drawing: Path, bundles: Callable[..., Path]):
    """The codes are drawn: no checkpoint here learned to segment."""
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT), 320, 240)
    options = {"constrain": "boxes", "do_sample": True, "temperature": 1e4, "max_new_tokens": 24, "seed": 0}
    vlm = load(drawing, threads=1)
    first = vlm.generate("segment cat", picture, num_return_sequences=12, **options)
    answers = [first, *first.alternatives]
    masks = [mask for answer in answers for mask in answer.masks]
    assert len(masks) >= 2
    for answer in answers:
        assert {mask.box for mask in answer.masks} <= set(answer.boxes)
    for mask in masks:
        box = mask.box
        assert len(mask.codes) == 16
        assert (mask.pixels.shape, mask.pixels.dtype) == ((240, 320), bool)
        outside = mask.pixels.copy()
        outside[round(box.ymin) : round(box.ymax), round(box.xmin) : round(box.xmax)] = False
        assert not outside.any()
    largest = max(masks, key=lambda mask: mask.pixels.sum())
    box, shape = largest.box, vlm.pipeline.engine.masks(np.array([largest.codes]))[0]
    size = round(box.xmax) - round(box.xmin), round(box.ymax) - round(box.ymin)
    inside = np.asarray(Image.fromarray(shape).resize(size, Image.Resampling.BILINEAR)) > 0
    assert largest.pixels.sum() == inside.sum() > 100
    assert (np.asarray(draw(picture, [], [largest])) != np.asarray(picture)).any(-1)[largest.pixels].mean() > 0.9
    plain = load(bundles("paligemma2"), threads=1)
    answer = plain.generate("segment cat", picture, num_return_sequences=12, **options)
    found = [mask for one in (answer, *answer.alternatives) for mask in one.masks]
    assert found
    assert all(mask.pixels is None and len(mask.codes) == 16 for mask in found)


def test_masks_come_while_answers_go_on(drawing: Path):
    """Each with its pixels; ids come after it."""
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT), 320, 240)
    options = {"constrain": "boxes", "do_sample": True, "temperature": 1e4, "max_new_tokens": 24, "seed": 0}
    with Scheduler(load(drawing, threads=1), max_rows=12) as scheduler:
        request = Request("segment cat", [picture], [], None)
        stream = scheduler.submit(request, num_return_sequences=12, **options)
        pieces = list(stream)
    answers = [stream.generation, *stream.generation.alternatives]
    assert any(answer.masks for answer in answers)
    for index, answer in enumerate(answers):
        own = [piece for piece in pieces if piece.index == index]
        told = [piece.grounded.masks for piece in own if piece.grounded and piece.grounded.masks]
        if answer.masks:
            assert told[-1] == answer.masks
            assert np.array_equal(told[0][0].pixels, answer.masks[0].pixels)
            first = next(place for place, piece in enumerate(own) if piece.grounded and piece.grounded.masks)
            assert any(piece.token_ids for piece in own[first + 1 :])


def test_the_command_prints_masks_as_run_lengths(drawing: Path, tmp_path: Path):
    picture = tmp_path / "shapes.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT), 320, 240).save(picture)
    done = run_command(
        "generate",
        drawing,
        "segment cat",
        "--image",
        picture,
        "--constrain",
        "boxes",
        "--do-sample",
        "--temperature",
        "10000",
        "--max-new-tokens",
        "24",
        "--seed",
        "0",
        "--json",
        "--draw",
        tmp_path / "drawn.png",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["masks"], answer["text"]
    for mask in answer["masks"]:
        assert mask["pixels"]["size"] == [240, 320]
        assert sum(mask["pixels"]["counts"]) == 240 * 320
    assert Image.open(tmp_path / "drawn.png").size == (320, 240)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop("decoder.6.bias"), r"decoder\.6\.bias is missing"),
        (lambda arrays: arrays.pop("_vq_vae._embedding"), r"_vq_vae\._embedding is missing"),
        (lambda arrays: arrays.update({"_vq_vae._embedding": np.zeros((64, DEPTH))}), r"is \(64, 24\), it should be"),
        (
            lambda arrays: arrays.update({"decoder.0.weight": np.zeros((1, 1, DEPTH, 128))}),
            r"should be \(128, 24, 1, 1",
        ),
        (lambda arrays: arrays.update({"decoder.12.bias": np.zeros(1, int)}), "decoder.12.bias is int64, it should be"),
        (lambda arrays: arrays.update({"decoder.12.bias": np.full(1, np.nan)}), "finite"),
        (lambda arrays: arrays.update({"decoder.12.bias": np.array([None])}), "pickle"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Callable[[dict], object], said: str):
    arrays = published()
    change(arrays)
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(CheckpointError, match=said) as caught:
        export_model(CHECKPOINT, tmp_path / "bundle", mask_decoder=tmp_path / "weights.npz")
    assert "weights.npz" in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path):
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"decoder.0.weight": 1}))
    np.save(tmp_path / "array.npy", np.zeros(3))
    whole = tmp_path / "cut.npz"
    np.savez(whole, **published())
    whole.write_bytes(whole.read_bytes()[:-1000])
    for name in ("text.npz", "empty.npz", "pickle.npz", "array.npy", "cut.npz", "none.npz"):
        with pytest.raises(CheckpointError, match=name):
            export_model(CHECKPOINT, tmp_path / "bundle", mask_decoder=tmp_path / name)
    with pytest.raises(CheckpointError, match="writes no codes of masks"):
        export_model(CHECKPOINTS / "kosmos2", tmp_path / "bundle", mask_decoder=whole)


def test_a_decoder_for_other_codes_is_refused(drawing: Path):
    made = manifest.load(drawing)
    fewer = dataclasses.replace(made, grounding=dataclasses.replace(made.grounding, codes=9))
    text = (drawing / manifest.FILE_NAME).read_text()
    try:
        fewer.save(drawing)
        with pytest.raises(BundleError, match="mask_decoder: takes 16 codes, the model writes 9"):
            load(drawing)
    finally:
        (drawing / manifest.FILE_NAME).write_text(text)
