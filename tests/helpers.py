"""What tests share besides fixtures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = REPOSITORY / "tests" / "checkpoints"
CHECKPOINT = CHECKPOINTS / "paligemma2"


def run_command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run `onnx-vlm` as a user does."""
    command = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)
