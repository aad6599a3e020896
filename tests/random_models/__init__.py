"""Random checkpoints of small and odd configurations, whose answers change with every picture, prompt and position."""

import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)

from .gemma3 import gemma3
from .kosmos2 import kosmos2
from .llava import llava
from .paligemma import colpali, paligemma
from .perception_lm import perception_lm
from .smolvlm import smolvlm
from .weights import telling_weights

__all__ = ["colpali", "gemma3", "kosmos2", "llava", "paligemma", "perception_lm", "smolvlm", "telling_weights"]
