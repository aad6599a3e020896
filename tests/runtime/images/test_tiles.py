"""Images as tiles; what they become is compared with transformers in `test_processors.py`."""

from __future__ import annotations

import numpy as np
from onnx_vlm.graphs.manifest import PixelScaling, Resize
from onnx_vlm.runtime.images.tiles import tiles
from PIL import Image

RECIPE = Resize(14, 28, PixelScaling("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def test_tiles_are_scaled_and_normalised():
    image = Image.new("RGB", (100, 7), (0, 255, 51))
    made = tiles(image, RECIPE)
    assert made.shape == (1, 3, 14, 28)
    assert made.dtype == np.float32
    assert np.allclose(made[0, :, 5, 5], [-1, 1, -0.6])
