"""How fast a bundle is on this machine, stage by stage, and how near its decoding comes to the memory's speed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..graphs import InputError, contract
from .images import reading as image
from .inference.host_cache import Cache
from .model import VLM, load
from .text.prompt import Encoded

PROMPT = "Describe the picture."
SIZE = 640, 480  #: of the picture, if none is given; pixels
READ_AT_ONCE = 1 << 28  #: bytes read to measure the memory; more than caches hold


@dataclass(frozen=True)
class Figures:
    """What `measure` found. Seconds are medians.

    Attributes:
        provider: where the graphs ran.
        load: seconds until the bundle was ready.
        preprocess: seconds from picture and prompt to tiles and ids.
        vision: seconds from tiles to image embeddings.
        prefill: seconds from embeddings to the first logits.
        decode: seconds a token.
        tiles: how many tiles the picture had.
        prompt_tokens: how many tokens the prompt had, those of the picture included.
        bandwidth: bytes a second that as many threads read from memory in this run; None if the graphs ran elsewhere.
        token_bytes: bytes that a decoded token reads, weights and KV cache.
        bundle_bytes: the size of the bundle.
        peak_memory: the most resident memory of this process so far, bytes; None where the system does not tell.
    """

    provider: str
    load: float
    preprocess: float
    vision: float
    prefill: float
    decode: float
    tiles: int
    prompt_tokens: int
    bandwidth: float | None
    token_bytes: int
    bundle_bytes: int
    peak_memory: int | None

    @property
    def limit_share(self) -> float | None:
        """The speed of decoding as a share of what reading the bytes of a token from memory allows."""
        return None if self.bandwidth is None else self.token_bytes / self.bandwidth / self.decode


def measure(
    bundle: Path,
    picture: image.ImageInput | None = None,
    provider: str = "auto",
    threads: int | None = None,
    new_tokens: int = 32,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda step: None,
    *,
    provider_options: Mapping[str, Any] | None = None,
    allow_fallback: bool = False,
) -> Figures:
    """Load a bundle and answer a prompt about a picture `repeats` times, `new_tokens` tokens each, whatever they say.

    Raises:
        InputError: if there is nothing to measure, or what `load` and `generate` raise.
    """
    if new_tokens < 2 or repeats < 1:
        raise InputError(f"{new_tokens} tokens, {repeats} times, cannot be measured; give 2 or more, once or more")
    progress("load")
    start = time.perf_counter()
    vlm = load(bundle, provider, threads, provider_options, allow_fallback)
    loaded = time.perf_counter() - start
    given = picture if picture is not None else np.indices((*SIZE[::-1], 3)).sum(0).astype(np.uint8)
    prompt = vlm.manifest.proof.prompt if vlm.manifest.proof else PROMPT
    laps = []
    for turn in range(repeats):
        progress(f"answer {turn + 1} of {repeats}")
        laps.append(_answer(vlm, prompt, given, new_tokens))
    # Of the first run only what the others cannot tell: it sets buffers up.
    seconds = {name: median(times[name] for _, times in laps[len(laps) > 1 :]) for name in laps[0][1]}
    peak, encoded = _peak_memory(), laps[0][0]
    progress("read memory")
    spec, weights = vlm.manifest.graphs[contract.DECODER], vlm.manifest.graph_bytes(contract.DECODER)
    return Figures(
        provider=vlm.provider,
        load=loaded,
        **seconds,
        tiles=sum(map(len, encoded.tiles)),
        prompt_tokens=len(encoded.ids),
        bandwidth=bandwidth(threads or os.cpu_count() or 1) if vlm.pipeline.engine.target.row.on_host else None,
        token_bytes=weights + Cache.nbytes(spec, 1, len(encoded.ids) + new_tokens // 2),
        bundle_bytes=sum(file.size for file in vlm.manifest.files.values()),
        peak_memory=peak,
    )


def _answer(vlm: VLM, prompt: str, picture: image.ImageInput, new_tokens: int) -> tuple[Encoded, dict[str, float]]:
    """The encoded prompt, and the seconds of each stage."""
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    engine, seconds = vlm.pipeline.engine, {}
    encoded = vlm.pipeline.prompts.encode(prompt, [image.tiles(image.read(picture), vlm.manifest.image)])
    seconds["preprocess"] = lap()
    embeds = engine.embed(encoded)
    seconds["vision"] = lap()
    logits, run = engine.start([embeds], new_tokens)
    seconds["prefill"] = lap()
    steps = []
    for _ in range(new_tokens):
        logits = run.step(np.zeros(1, np.int64), logits.argmax(-1))
        steps.append(lap())
    return encoded, {**seconds, "decode": median(steps)}


def bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory together, the best of several times."""
    parts = np.array_split(np.ones(READ_AT_ONCE, np.uint8), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(np.ndarray.max, parts))  # NumPy gives the interpreter free while it reads
            best = max(best, READ_AT_ONCE / (time.perf_counter() - start))
    return best


def _peak_memory() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
