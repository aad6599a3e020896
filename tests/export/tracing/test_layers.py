"""Deep models traced by their first layers: what is copied, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx_vlm.export.tracing import trace
from onnx_vlm.graphs import GraphSpec, TensorSpec
from onnx_vlm.graphs.transforms import weights

SPEC = GraphSpec((TensorSpec("x", "float32", ("tiles", 8)),), (TensorSpec("y", "float32", ("tiles", 8)),))


class Layer(torch.nn.Module):
    ran: int = 0

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Layer.ran += 1
        return x + self.factor * torch.relu(self.linear(x))


class Deep(torch.nn.Module):
    def __init__(self, factors: list[float], second: int | None = None) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(factor) for factor in factors])
        self.second = second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        extra = 0 if self.second is None else states[self.second]
        return torch.tanh(states[-1] + extra)


def traced(folder: Path, *arguments: object) -> int:
    """How often a layer ran while a model was traced, whose graph computes what the model does."""
    torch.manual_seed(0)
    real = Deep(*arguments)
    with trace.fake_weights():
        fake = Deep(*arguments)
        Layer.ran = 0
        graph = trace.trace(fake, SPEC)
    ran, state = Layer.ran, real.state_dict()
    assert len(fake.layers) == len(real.layers)
    weights.attach(graph, lambda name: state[name].numpy())
    weights.write(weights.store(graph, folder / "deep.onnx"))
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    (ours,) = ort.InferenceSession(folder / "deep.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.allclose(ours, real(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    return ran


@pytest.mark.parametrize("pattern", [[1.0], [0.5, 2.0]], ids=["all alike", "every other"])
@pytest.mark.parametrize("layers", [7, 10])
def test_layers_that_repeat_are_traced_once(tmp_path: Path, pattern: list[float], layers: int):
    kept = 3 * len(pattern)
    factors = (pattern * layers)[:layers]
    assert traced(tmp_path, factors) == traced(tmp_path, factors[:kept])


def test_a_layer_that_differs_is_traced(tmp_path: Path):
    assert traced(tmp_path, [1.0] * 5 + [3.0] + [1.0] * 2) == 8 * traced(tmp_path, [1.0])


@pytest.mark.parametrize("second", [0, 2, 5, -2])
def test_a_graph_that_also_uses_what_an_early_layer_gives_is_right(tmp_path: Path, second: int):
    traced(tmp_path, [1.0] * 7, second)
