"""How a bundle is to be loaded: the one set of options that every command and function passes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LoadOptions:
    """Where the graphs of a bundle are to run, and how.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt", which runs there or is an error; or "auto", the best that runs.
        threads: threads for one operator on the CPU; None for one a core, or fewer where a container has a quota of
            processor time.
        provider_options: options of the provider by name; `providers.options.OPTIONS` lists them.
        allow_fallback: let nodes run on the CPU that the provider has no kernel for.
        look_ahead: guess tokens that repeat what stands in the prompt or in an answer before, and check several in one
            step. Answers are the same. It is for causal models on the CPU, and one answer at a time.
        expand_weights: have the decoder's weights of 4 bits in memory as 8-bit integers too, a byte a weight, for
            prompts and other runs of many tokens: faster on a CPU with a dot product of bytes (VNNI), and an error
            elsewhere. For decoders in int4 with blocks of 128.
        share_weights: on the CPU, share the memory of the weights with other processes that load the same bundle so.
            They are written once as the CPU's kernels take them, with twice the bytes of the bundle's graphs, to the
            folder of caches: `onnx-vlm` in the user's, or the environment's ONNX_VLM_CACHE.
    """

    provider: str = "auto"
    threads: int | None = None
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    allow_fallback: bool = False
    look_ahead: bool = True
    expand_weights: bool = False
    share_weights: bool = False
