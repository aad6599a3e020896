"""Where graphs run: options, strictness, the placement of nodes, and what the doctor says of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from helpers import REPOSITORY
from onnx_vlm.graphs import TensorSpec, contract
from onnx_vlm.runtime import InputError, ProviderError, load
from onnx_vlm.runtime.cli import app
from onnx_vlm.runtime.providers import cuda, onnx_bytes, ort_session, probe
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.providers.options import OPTIONS, SESSION, parse, resolve
from onnx_vlm.runtime.providers.ort_session import create
from onnx_vlm.runtime.providers.placement import check_placement
from onnx_vlm.runtime.providers.table import PROVIDERS
from onnx_vlm.runtime.providers.targets import Target, choose_targets
from typer.testing import CliRunner

BUILT = set(ort.get_available_providers())
cpu_package = pytest.mark.needs("onnxruntime")


def target(provider: str, **options: Any) -> Target:
    return Target(provider, resolve(provider, options))


def test_options_become_what_onnx_runtime_calls_them():
    resolved = resolve("cuda", {"threads": "2", "device_id": 1, "memory_limit": 5 << 30, "arena_extend": "exact"})
    assert resolved[SESSION] == {"intra_op_num_threads": 2}
    assert resolved[PROVIDERS["cuda"].ort_name] == {
        "use_tf32": "0",
        "device_id": "1",
        "gpu_mem_limit": str(5 << 30),
        "arena_extend_strategy": "kSameAsRequested",
    }
    both = resolve("tensorrt", {"device_id": 1, "tf32": "on"})
    assert both[PROVIDERS["tensorrt"].ort_name] == {"device_id": "1"}
    shared = both[PROVIDERS["cuda"].ort_name]
    assert shared == {"use_tf32": "1", "device_id": "1"}, "what TensorRT leaves goes to the same GPU"
    names = [name for name, _ in target("tensorrt").entries()]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("provider", "options", "said"),
    [
        ("cpu", {"memory": 1}, "no option 'memory'; it has: threads, arena"),
        ("cpu", {"device_id": 1}, "device_id is one of cuda, tensorrt"),
        ("cuda", {"device_id": -1}, "device_id is -1; give an integer of 0 or more"),
        ("cuda", {"memory_limit": "8GB"}, "memory_limit is '8GB'; give an integer of 1 or more"),
        ("cuda", {"device_id": True}, "device_id is True"),
        ("cuda", {"arena_extend": "double"}, "give 'power_of_two' or 'exact'"),
        ("cpu", {"threads": 1025}, "threads is 1025; give an integer of 1 to 1024"),
        ("cpu", {"threads": 99999999999}, "threads is 99999999999; give"),
        ("cpu", {"arena": ["on"]}, "give 'on' or 'off'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(provider: str, options: Mapping[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        resolve(provider, options)


def test_options_of_the_command():
    assert parse(["device_id=1", "arena_extend=exact"]) == {"device_id": "1", "arena_extend": "exact"}
    for wrong in (["device_id"], ["=1"], ["arena="], ["threads=1", "threads=2"]):
        with pytest.raises(InputError, match="--provider-option"):
            parse(wrong)


def test_options_reach_the_session(bundle: Path):
    vlm = load(bundle, provider="cpu", threads=1, provider_options={"arena": "off"})
    options = vlm.pipeline.engine._decoder._session.get_session_options()
    assert (options.intra_op_num_threads, options.enable_cpu_mem_arena) == (1, False)
    with pytest.raises(InputError, match="give one of them"):
        load(bundle, threads=1, provider_options={"threads": 2})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LoadOptions("cpu", 2, {"arena": "off"}, allow_fallback=True), "cpu"),
        (LoadOptions("cuda", provider_options={"cuda_graph": "on", "tf32": "off"}), "cuda"),
        (LoadOptions("cuda", provider_options={"tf32": "on"}), "cuda with tf32"),
        (LoadOptions("tensorrt", allow_fallback=True), "tensorrt with nodes on the CPU"),
    ],
)
def test_what_the_rounding_depends_on(options: LoadOptions, expected: str):
    assert [target.arithmetic for target in choose_targets(options)] == [expected]


def test_auto_takes_what_loads_and_drops_no_option(bundle: Path):
    vlm = load(bundle, threads=1)
    assert vlm.provider in PROVIDERS
    assert (vlm.provider == "cpu") <= (PROVIDERS["cuda"].ort_name not in BUILT or bool(vlm.passed_over))
    if PROVIDERS["cuda"].ort_name not in BUILT:
        with pytest.raises(InputError, match="device_id is one of cuda"):
            load(bundle, provider_options={"device_id": 0})


def test_every_node_is_counted(bundle: Path):
    vlm = load(bundle, provider="cpu", threads=1)
    assert set(vlm.placement) == set(contract.GRAPHS)
    layers = (len(vlm.manifest.graphs[contract.DECODER].outputs) - 1) // 2
    assert {graph: list(placed) for graph, placed in vlm.placement.items()} == {key: ["cpu"] for key in contract.GRAPHS}
    assert vlm.placement[contract.DECODER]["cpu"]["GroupQueryAttention"] == layers


def test_a_hot_node_on_the_cpu_is_an_error_for_another_provider(bundle: Path):
    placed = load(bundle, provider="cpu", threads=1).placement[contract.DECODER]
    with pytest.raises(ProviderError, match=r"cuda has no kernel for .* GroupQueryAttention.*fp16"):
        check_placement("decoder.onnx", placed, target("cuda"))
    allowed = Target("cuda", resolve("cuda", {}), allow_fallback=True)
    for fine in (allowed, target("cpu")):
        check_placement("decoder.onnx", placed, fine)
    shapes = {"cuda": {"MatMul": 3}, "cpu": {"Shape": 1, "Concat": 2}}
    check_placement("decoder.onnx", shapes, target("cuda"))
    with pytest.raises(ProviderError, match="tensorrt takes none of its nodes, 3 are on cuda, 3 are on cpu"):
        check_placement("decoder.onnx", shapes, target("tensorrt"))


@cpu_package
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error(bundle: Path, provider: str):
    with pytest.raises(ProviderError, match=r"built without .*to get it: pip uninstall .*onnxruntime-gpu\[cuda,cudnn]"):
        load(bundle, provider=provider, allow_fallback=True)


@cpu_package
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_changed_its_provider_is_refused():
    with pytest.raises(ProviderError, match="CUDAExecutionProvider did not load"):
        create(onnx_bytes.doubling(), target("cuda"))


def test_only_steps_are_captured():
    wanted = target("cuda", cuda_graph="on")
    assert wanted.captures
    assert dict(wanted.entries(captures=True))[PROVIDERS["cuda"].ort_name]["enable_cuda_graph"] == "1"
    assert "enable_cuda_graph" not in dict(wanted.entries())[PROVIDERS["cuda"].ort_name]


def test_small_graphs_compute():
    logits = TensorSpec("logits", "float32", ("batch", "kept", 300))
    values = np.random.default_rng(0).normal(size=(3, 1, 300)).astype(np.float32)
    made = create(onnx_bytes.argmax(logits, "ids"), target("cpu"))
    assert np.array_equal(made.run(None, {"logits": values})[0], values.argmax(-1))
    pairs = [
        (TensorSpec(f"in.{i}", "float16", ("rows", 2)), TensorSpec(f"out.{i}", "float16", ("rows", 2))) for i in (0, 1)
    ]
    made = create(onnx_bytes.gather(pairs, "order"), target("cpu"))
    buffers = [np.arange(6, dtype=np.float16).reshape(3, 2) + start for start in (0, 10)]
    order = np.array([2, 0, 2, 1])
    for result, buffer in zip(made.run(None, {"in.0": buffers[0], "in.1": buffers[1], "order": order}), buffers):
        assert np.array_equal(result, buffer[order])


@pytest.mark.parametrize("overflow", [True, False])
def test_exact_integers_are_asked_for_where_products_overflow(monkeypatch: pytest.MonkeyPatch, overflow: bool):
    """Where they do not, the setting makes products several times slower."""
    assert ort_session.integers_overflow() in (True, False), "the processor is asked"
    monkeypatch.setattr(ort_session, "integers_overflow", lambda: overflow)
    entry = ort_session.session_options().get_session_config_entry(ort_session.EXACT_INTEGERS)
    assert entry == str(int(overflow))


def test_a_library_that_is_missing_is_named():
    assert cuda._load("libno-such-thing.so.1", None).error
    missing = [cuda.file_name(name, 10) for name in ("cublas", "nvinfer")] + [cuda.file_name("cuda", 1)]
    remedy = probe._install(missing)
    assert all(part in remedy for part in ("onnxruntime-gpu[cuda,cudnn]", "tensorrt==10.*", "driver"))
    assert "tensorrt" not in probe._install(missing[:1])


@cpu_package
def test_the_doctor_tells_what_runs():
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["sound"], found["auto"], found["clash"]) == (0, True, "cpu", None)
    assert found["version"] == ort.__version__
    assert [(one["provider"], one["built"], one["runs"]) for one in found["attempts"]] == [
        ("cpu", True, True),
        ("cuda", False, False),
        ("tensorrt", False, False),
    ]
    asked = CliRunner().invoke(app, ["doctor", "--provider", "cuda"])
    assert asked.exit_code == 1
    assert "ran a graph of one node" in asked.stdout
    assert "onnxruntime-gpu[cuda,cudnn]" in asked.stdout.replace("\n", "").replace(" ", "")


def test_two_packages_at_once_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.31.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.1\n")
        (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["sound"]) == (1, False)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in found["clash"]


def test_every_option_is_documented():
    text = (REPOSITORY / "docs" / "providers.md").read_text()
    assert all(f"`{name}`" in text for name in OPTIONS)
