"""Fixtures that every test may use. They export in a process of their own: the runtime's tests never see torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers import CHECKPOINT, run_command

sys.path.insert(0, str(Path(__file__).parent / "checkpoints"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint, exported once. Tests must not change it."""
    output = tmp_path_factory.mktemp("bundles") / "paligemma2"
    done = run_command("export", CHECKPOINT, output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real tokenizers, photographs and published values, which are no part of the repository."""
    folder = Path(os.environ.get("ONNX_VLM_ASSETS", "does-not-exist"))
    if not folder.is_dir():
        pytest.skip("ONNX_VLM_ASSETS does not name the folder of real data")
    return folder
