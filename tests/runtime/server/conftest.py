"""A server of the trained checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from onnx_vlm.runtime import Limits
from onnx_vlm.runtime.server.models import Models
from server_helpers import Running, load_models, serving

NAMES = ("paligemma2", "perception_lm", "kosmos2")


@pytest.fixture(scope="session")
def models(bundles: Callable[..., Path]) -> Iterator[Models]:
    """The trained checkpoints, loaded; tests must leave their schedulers idle."""
    loaded = load_models({name: bundles(name) for name in NAMES}, Limits(max_pixels=1_000_000), max_rows=4)
    yield loaded
    loaded.close(drain=False)


@pytest.fixture(scope="session")
def running(models: Models) -> Iterator[Running]:
    """Their server, without a key."""
    with serving(models) as server:
        yield server
