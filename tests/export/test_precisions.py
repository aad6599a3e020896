"""16-bit and 8-bit bundles: what they hold, how far they are from the source, and what stays in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import shapes
from held_out import FAMILIES
from helpers import CHECKPOINT, CHECKPOINTS
from onnx_vlm.export import export_model
from onnx_vlm.export.estimate import Estimate
from onnx_vlm.graphs import ExportError, contract, manifest
from onnx_vlm.graphs.transforms import float16, quantize_blocks, weights
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.images.tiles import tiles as tiles_of_image
from onnx_vlm.runtime.inference.token_embeddings import dequantized_rows
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.verify import Check, verify
from safetensors.torch import load_file, save_file

HALVES = {"vision_encoder": "fp16", "projector": "fp16", "decoder": "fp16", "embed_tokens": "fp16"}


def answer(vlm: VLM, prompt: str) -> list[int]:
    return vlm.generate(prompt, shapes.draw(shapes.scene(shapes.HELD_OUT)), max_new_tokens=24).token_ids


def errors(checks: list[Check]) -> dict[str, float]:
    assert all(check.passed for check in checks), checks
    return {check.name: check.error for check in checks}


def exported(output: Path, **options: Any) -> tuple[Path, Estimate]:
    """A bundle without proof, and what was said of it before."""
    told: list[Estimate] = []
    return export_model(CHECKPOINT, output, prove=False, announce=told.append, **options), told[0]


def stored(bundle: Path) -> int:
    """Bytes of weights and embeddings."""
    return sum(path.stat().st_size for path in bundle.iterdir() if path.suffix in (".data", ".npy"))


@pytest.mark.parametrize("name", FAMILIES)
def test_float16(bundles: Callable[..., Path], name: str):
    half = bundles(name, "fp16")
    made = manifest.load(half)
    assert made.precision == HALVES
    assert {spec.dtype for spec in made.graphs["decoder"].outputs[1:]} == {"float16"}
    assert made.float32_nodes == dict.fromkeys(contract.GRAPHS, ())
    sizes = [(folder / "decoder.onnx.data").stat().st_size for folder in (half, bundles(name))]
    assert sizes[0] < 0.55 * sizes[1]
    found = errors(verify(half, LoadOptions(threads=1)))
    assert 0 < found["vision_features"] < 1e-3
    assert 0 < found["step logits"] < 3e-3


@pytest.mark.parametrize("name", ["paligemma2", "kosmos2"])
def test_bfloat16_loses_nothing_of_a_bfloat16_checkpoint(tmp_path: Path, name: str):
    checkpoint = shutil.copytree(CHECKPOINTS / name, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py"))
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    whole = export_model(checkpoint, tmp_path / "whole", prove=False)
    half = export_model(checkpoint, tmp_path / "half", precision="bf16", prove=False)
    sizes = [(folder / "embed_tokens.npy").stat().st_size for folder in (half, whole)]
    assert sizes[0] < 0.55 * sizes[1]
    one, other = (load(folder, threads=1) for folder in (whole, half))
    picture = shapes.draw(shapes.scene(shapes.HELD_OUT))
    tiles = tiles_of_image(picture, one.manifest.image)
    assert np.array_equal(one.pipeline.engine.encode_images(tiles), other.pipeline.engine.encode_images(tiles))
    tables = [dequantized_rows(vlm.pipeline.engine._table[:]) for vlm in (one, other)]
    assert np.array_equal(*tables)
    prompt = one.pipeline.engine.embed(one.pipeline.prompts.encode("caption", [tiles]))
    assert np.array_equal(one.pipeline.engine.start([prompt], 1)[0], other.pipeline.engine.start([prompt], 1)[0])


def test_vision_and_decoder_are_chosen_separately(tmp_path: Path):
    made, told = exported(tmp_path / "bundle", precision="bf16", vision_precision="fp16")
    assert manifest.load(made).precision == {**HALVES, "decoder": "bf16", "embed_tokens": "bf16"}
    assert told.disk == pytest.approx(stored(made), rel=0.03)


def test_what_overflows_float16_stays_in_float32(tmp_path: Path, bundle: Path):
    """A norm follows the products that are made large here, so the model stays the same."""
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py")))
    tensors = load_file(checkpoint / "model.safetensors")
    (key,) = [key for key in tensors if key.endswith("layers.1.mlp.down_proj.weight")]
    tensors[key] = tensors[key] * 1e5
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    half = export_model(checkpoint, tmp_path / "half", precision="fp16")
    kept = manifest.load(half).float32_nodes
    assert kept["vision_encoder"] == kept["projector"] == ()
    nodes = {node.name: node for node in ir.load(half / "decoder.onnx").graph}
    assert sorted(nodes[name].op_type for name in kept["decoder"]) == ["MatMul", "RMSNormalization"]
    assert answer(load(half, threads=1), "caption") == answer(load(bundle, threads=1), "caption")
    errors(verify(half, LoadOptions(threads=1)))


def test_smaller_blocks_make_larger_bundles(tmp_path: Path, bundles: Callable[..., Path]):
    small, told = exported(tmp_path / "small", precision="int4", block_size=32)
    for made, size in ((small, 32), (bundles("paligemma2", "int4"), 128)):
        node = next(node for node in ir.load(made / "decoder.onnx").graph if node.op_type == "MatMulNBits")
        assert node.attributes["block_size"].as_int() == size
    assert stored(small) > stored(made)
    assert told.disk == pytest.approx(stored(small), rel=0.03)
    with pytest.raises(ExportError, match=r"block_size of 48 is not supported; supported: 32, 64, 128"):
        export_model(CHECKPOINT, tmp_path / "bundle", precision="int4", block_size=48)


@pytest.mark.parametrize("name", FAMILIES)
def test_vision_features_in_int8_are_within_two_percent(
    bundles: Callable[..., Path], name: str, figure: Callable[[str], None]
):
    error = errors(verify(bundles(name, "int4"), LoadOptions(threads=1)))["vision_features"]
    figure(f"{name}: int8 vision features {error:.2%} from float32")
    assert error < 0.02


def test_rows_of_a_table_survive_packing(tmp_path: Path):
    table = np.random.default_rng(0).standard_t(4, size=(300, 40)).astype(np.float32)
    table[7] = 0
    packed = quantize_blocks.quantized_rows("table", table)
    weights.write([weights.store_array(packed, tmp_path / "table.npy")])
    stored = np.load(tmp_path / "table.npy", mmap_mode="r")
    assert (stored.shape, stored.dtype) == ((300, 44), np.uint8)
    rows = dequantized_rows(stored[[[3, 7], [299, 3]]])
    assert rows.shape == (2, 2, 40)
    assert (rows[0, 1] == 0).all()
    assert np.abs(rows[1, 0] - table[299]).max() <= np.abs(table[299]).max() / 127 / 2 + 1e-6
    half = weights.Weight("table", table, ir.DataType.BFLOAT16)
    weights.write([weights.store_array(half, tmp_path / "half.npy")])
    error = np.abs(dequantized_rows(np.load(tmp_path / "half.npy")) - table) / np.maximum(np.abs(table), 1e-9)
    assert error.max() <= 2**-8


def graph() -> ir.Model:
    """exp(x @ w) / 2, w from a source, and a transpose of it."""

    def value(name: str, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))

    x, w, y, z, out = (
        value("x", "n", 512),
        value("w", 512, 512),
        value("y", "n", 512),
        value("z", "n", 512),
        value("out", 512, "n"),
    )
    nodes = [
        ir.node("MatMul", [x, w], outputs=[y], name="product"),
        ir.node("Exp", [y], outputs=[z], name="exp"),
        ir.node("Transpose", [z], {"perm": [1, 0]}, outputs=[out], name="transpose"),
    ]
    made = ir.Graph([x], [out], nodes=nodes, initializers=[w], opset_imports={"": 23})
    return ir.Model(made, ir_version=10)


class Stored:
    """Weights that are read, as those of a checkpoint are."""

    shape = (512, 512)

    def __getitem__(self, index: object) -> np.ndarray:
        return np.full(self.shape, 0.01, np.float32)[index]


def test_ranges_say_which_nodes_are_too_large_and_narrowing_keeps_them(tmp_path: Path):
    model, path = graph(), tmp_path / "model.onnx"
    weights.attach(model, lambda name: Stored())
    assert float16.store(model, ir.DataType.FLOAT16) == 1
    weights.write(weights.store(model, path))
    x = np.full((2, 512), 2.0, np.float32)  # the product is 10.24, its exponential 28001
    probe = ir.load(path)
    names = float16.add_ranges(probe)
    ir.save(probe, tmp_path / "probe.onnx")
    session = ort.InferenceSession(tmp_path / "probe.onnx", providers=["CPUExecutionProvider"])
    largest = {name: float(v) for name, v in zip(names, session.run(list(names.values()), {"x": x}))}
    assert largest["y"] == pytest.approx(10.24, rel=1e-3)
    assert float16.too_large(ir.load(path), largest, 10_000) == ["exp", "transpose"]
    narrowed = ir.load(path)
    float16.compute_in_float16(narrowed, ["exp", "transpose"])
    ir.save(narrowed, path)
    types = {node.name: node.outputs[0].dtype for node in narrowed.graph if node.op_type != "Cast"}
    assert types == {"product": ir.DataType.FLOAT16, "exp": ir.DataType.FLOAT, "transpose": ir.DataType.FLOAT}
    (result,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert result[0, 0] == pytest.approx(np.exp(10.24), rel=0.01)
