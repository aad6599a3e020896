"""The portable target: operators that TensorRT parses, and the same tokens as the usual flavour and transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import shapes
from held_out import FAMILIES
from helpers import CHECKPOINT, CHECKPOINTS
from judge import Judge
from onnx_vlm.export import export_model
from onnx_vlm.graphs import ExportError, contract, manifest
from onnx_vlm.runtime import VLM, load
from onnx_vlm.runtime.inference.device_cache import Device
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.verify import verify
from random_models import perception_lm
from random_parity import RandomParity
from random_rows import KOSMOS2, PALIGEMMA, PERCEPTION_LM, SMOLVLM, Row
from source import TOLERANCE, Source, ask, open_source, stage_errors
from test_mask_decoder import published
from test_random_parity import pictures
from test_trained_parity import NEW_TOKENS, generate, questions

#: Operators that docs/operators.md of onnx-tensorrt marks as supported in its releases for TensorRT 10.0 and for 10.15,
#: as far as language and vision models use them. Those that only the later one has (Attention, RMSNormalization,
#: RotaryEmbedding) are left out.
PARSED = {
    "Abs",
    "Add",
    "And",
    "AveragePool",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "DequantizeLinear",
    "Div",
    "Einsum",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pad",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
}
#: Inputs that the same page wants to be initialisers, by their place.
CONSTANT_INPUTS = {
    "ReduceL2": 1,
    "ReduceMax": 1,
    "ReduceMean": 1,
    "ReduceSum": 1,
    "Slice": 3,
    "Squeeze": 1,
    "Unsqueeze": 1,
}
LATEST_OPSET = 20  #: of TensorRT 10.0


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A trained checkpoint as a portable bundle; the export holds it to its proof."""
    return export_model(CHECKPOINTS / name, tmp_path_factory.mktemp("portable") / name, target="portable")


@pytest.fixture(scope="module")
def vlm(portable: Path, threads: int) -> VLM:
    return load(portable, threads=threads)


@pytest.fixture(scope="module")
def source(name: str) -> Source:
    return open_source(CHECKPOINTS / name)


def assert_parsed(bundle: Path) -> None:
    """Hold every graph of a bundle to what TensorRT's parser says it takes."""
    for path in bundle.glob("*.onnx"):
        model = ir.load(path)
        assert set(model.graph.opset_imports) == {""}
        assert model.graph.opset_imports[""] <= LATEST_OPSET
        assert not model.functions
        assert {node.op_type for node in model.graph} <= PARSED, path
        for node in model.graph:
            place = CONSTANT_INPUTS.get(node.op_type)
            if place is not None and len(node.inputs) > place:
                assert node.inputs[place].is_initializer(), node
            assert node.op_type != "ScatterND" or "reduction" not in node.attributes, node
            assert node.op_type != "LayerNormalization" or len(node.outputs) == 1, node


def test_operators_are_those_that_tensorrt_parses(portable: Path):
    assert_parsed(portable)


def test_manifest_says_what_it_is(portable: Path):
    made = manifest.load(portable)
    assert (made.target, made.cache) == ("portable", "copied")
    extents = made.profiles[contract.DECODER]
    assert extents.keys() == {"batch", "sequence", "kept", "capacity"}
    assert extents["capacity"].largest == made.generation.max_positions
    assert all(made.profiles[name].keys() == {"tiles"} for name in (contract.VISION_ENCODER, contract.PROJECTOR))


def test_proof_holds(portable: Path):
    checks = verify(portable, LoadOptions(threads=1))
    assert {"vision_features", "step logits", "tokens"} <= {check.name for check in checks}
    assert all(check.passed for check in checks), checks


def test_tokens_are_those_of_transformers(
    vlm: VLM, source: Source, bundles: Callable[..., Path], name: str, judge: Judge, threads: int
):
    """Ragged batches, greedy and with beams; conversations are those of the usual flavour."""
    for seed in range(shapes.HELD_OUT + 500, shapes.HELD_OUT + 505):
        requests = questions(name, seed)
        for request, ours, truth in zip(requests, generate(vlm, requests), source.answer(requests, NEW_TOKENS)):
            judge.tokens(source, ours, truth, f"picture {seed}, {request.prompt!r}")
    for options in ({"num_beams": 3}, {"num_beams": 4, "length_penalty": 0.0}):
        for request, ours in zip(requests, generate(vlm, requests, **options)):
            (truth,) = source.answer([request], NEW_TOKENS, **options)
            judge.beams(source, request, [ours], [truth.ids], repr(request.prompt), options.get("length_penalty", 1.0))
    if name == "perception_lm":  # its conversations go on from the cache
        first, second, *_ = requests
        talks = [one.chat(first.images) for one in (vlm, load(bundles(name), threads=threads))]
        assert len({tuple(talk.ask(turn.prompt).token_ids) for talk in talks for turn in (first, second)}) == 2


def test_on_a_device_the_buffers_change_places(portable: Path, name: str):
    """As on a GPU, where the device is the CPU."""
    host, device = (load(portable, provider="cpu", threads=1) for _ in range(2))
    engine = device.pipeline.engine
    engine._device = Device(engine._decoder, engine.target, device.manifest.generation.max_positions, copied=True)
    requests = questions(name, shapes.HELD_OUT + 601)
    for options in ({}, {"num_beams": 3}):
        assert generate(device, requests, **options) == generate(host, requests, **options)


def test_stages_are_those_of_transformers(vlm: VLM, source: Source, name: str):
    errors = stage_errors(vlm, source, questions(name, shapes.HELD_OUT + 600)[0], 16)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(
    ("row", "prompts"),
    [
        (PALIGEMMA["many layers"], ["caption", "detect red circle ; blue square", ""]),
        (PERCEPTION_LM["one tile"], ["Describe the picture.", "Which is larger?", "What?"]),
        ((perception_lm, {"head_dim": 24, "tiles": 1}), ["Describe the picture.", "Which is larger?", "What?"]),
        (KOSMOS2["positions interpolated"], ["<grounding> An image of", "Question: how many? Answer:", "<grounding>"]),
        (SMOLVLM["tiles with a rest"], ["Describe the picture.", "Which is larger?", "What?"]),
    ],
    ids=["layers copied, a window that ends", "one key head", "heads of 24", "positions interpolated", "named tiles"],
)
def test_random_models(tmp_path: Path, random_parity: RandomParity, row: Row, prompts: list[str]):
    some = pictures(np.random.default_rng(7), len(prompts))
    random_parity.check(7, row, [ask(prompt, [one]) for prompt, one in zip(prompts, some)], target="portable")
    assert_parsed(tmp_path / "bundle")
    copied = any("copy_" in node.name for node in ir.load(tmp_path / "bundle" / "decoder.onnx").graph)
    assert copied == (row[1].get("layers", 2) > 6), "deep models are traced by their first layers"


def test_float16(tmp_path: Path):
    """What a norm squares stays in float32, and so does what is between its operators; with a decoder of masks."""
    np.savez(tmp_path / "masks.npz", **published())
    half = export_model(
        CHECKPOINT, tmp_path / "half", target="portable", precision="fp16", mask_decoder=tmp_path / "masks.npz"
    )
    assert all(check.passed for check in verify(half, LoadOptions(threads=1)))
    assert_parsed(half)
    assert manifest.load(half).profiles[contract.MASK_DECODER].keys() == {contract.MASKS}
    dtypes: dict[str, set[str]] = {}
    for node in ir.load(half / "decoder.onnx").graph:
        dtypes.setdefault(node.op_type, set()).add(node.outputs[0].dtype.name)
    assert all(dtypes[operator] == {"FLOAT"} for operator in ("Pow", "ReduceMean", "Sqrt", "Reciprocal"))
    assert all(dtypes[operator] == {"FLOAT16"} for operator in ("MatMul", "ScatterND", "Softmax"))


def test_what_has_no_standard_operator_is_refused(tmp_path: Path):
    with pytest.raises(ExportError, match=r"int4 and int8 is not supported for the target portable.*fp32, fp16, bf16"):
        export_model(CHECKPOINT, tmp_path / "bundle", target="portable", precision="int4")
    with pytest.raises(ExportError, match="target 'tensorrt' is not supported; supported: onnxruntime, portable"):
        export_model(CHECKPOINT, tmp_path / "bundle", target="tensorrt")
