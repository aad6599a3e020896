"""What the tests of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest
import shapes


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The held-out scene, 320 pixels wide and 240 high."""
    path = tmp_path / "shapes.png"
    shapes.draw(shapes.scene(shapes.HELD_OUT), 320, 240).save(path)
    return path
