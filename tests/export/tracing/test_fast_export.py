"""Programs that are handed to torch.onnx as they were captured, and those that it must trace again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx_vlm.export.tracing import fast_export, trace
from onnx_vlm.export.tracing.patching import TYPE_PROMOTION
from onnx_vlm.graphs import GraphSpec, TensorSpec
from onnx_vlm.graphs.transforms import weights

SPEC = GraphSpec(
    (TensorSpec("x", "float32", ("tiles", 3, 8, 8)), TensorSpec("length", "int32", ())),
    (TensorSpec("y", "float32", ("tiles", 2, 2, 2)),),
)


def plain(x: torch.Tensor, length: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Everything that is replaced where it stands."""
    y = torch.nn.functional.conv2d(x.to(torch.float32)[:], weight, padding="valid")
    y = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.dropout(y, 0.5, training=False), 2)
    torch.diff(y)  # leads nowhere
    seen = torch.arange(length.item()).to("cpu", torch.float64).sum() > 1
    return torch.where((y > 0) | (y < -1) & seen, y, seen.to(torch.float32))


def uneven(x: torch.Tensor, length: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.conv2d(x, weight, padding="same"), 2)


def writing(x: torch.Tensor, length: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.conv2d(x, weight), 2)
    y.mul_(length)
    return y + torch.diff(y.flatten(1), append=y.flatten(1)[:, :1]).unflatten(1, (2, 2, 2))


class Module(torch.nn.Module):
    ran: int = 0

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, torch.nn.Parameter(torch.empty(2, 3, 3, 3))

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        Module.ran += 1
        return self.function(x, length, self.weight)


@pytest.mark.parametrize(
    ("function", "again", "mixed"), [(plain, False, True), (uneven, True, False), (writing, True, True)]
)
def test_a_graph_computes_what_its_module_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[..., torch.Tensor], again: bool, mixed: bool
):
    called = []
    passes = importlib.import_module(TYPE_PROMOTION.module)
    for owner, name in ((fast_export, "_decompose"), (passes, TYPE_PROMOTION.name)):
        work = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, name=name, work=work: called.append(name) or work(*given))
    with trace.fake_weights():
        Module.ran = 0
        graph = trace.trace(Module(function), SPEC)
    assert Module.ran == 1, "it was translated the first time"
    assert ("_decompose" in called, TYPE_PROMOTION.name in called) == (again, mixed)
    random = np.random.default_rng(0)
    weight, x = (random.normal(size=size).astype(np.float32) for size in ((2, 3, 3, 3), (4, 3, 8, 8)))
    weights.attach(graph, lambda _: weight)
    weights.write(weights.store(graph, tmp_path / "graph.onnx"))
    session = ort.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {"x": x, "length": np.array(3, np.int32)})
    theirs = function(*map(torch.from_numpy, (x, np.array(3, np.int32), weight)))
    assert np.allclose(ours, theirs.numpy(), atol=1e-5)
