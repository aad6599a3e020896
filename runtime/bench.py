"""How fast a bundle is on this machine, stage by stage, and what share of memory bandwidth its decoding reaches."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ..graphs import InputError, contract
from .images.reading import ImageInput
from .inference.host_cache import Cache
from .memory import cache_bytes, free_memory
from .model import VLM
from .providers.load_options import LoadOptions
from .text.prompt import EncodedPrompt

PROMPT = "Describe the image."
SIZE = 640, 480  #: width and height of the image, if none is given
READ_AT_LEAST = 1 << 30  #: bytes read to measure the memory's bandwidth, unless less is free
CACHES = 4  #: how often the caches must fit into what is read


@dataclass(frozen=True)
class Bandwidth:
    """How fast memory is read.

    Attributes:
        rate: bytes a second, the best of several times.
        size: bytes read each time.
        threads: how many threads read together.
        caches: bytes that the processor's last caches hold; 0 if unknown. Well below `size`, or caches were measured.
    """

    rate: float
    size: int
    threads: int
    caches: int


@dataclass(frozen=True)
class Figures:
    """The results of `measure`. Seconds are medians.

    Attributes:
        provider: where the graphs ran.
        load: seconds until the bundle was ready.
        preprocess: seconds from image and prompt to tiles and ids.
        vision: seconds from tiles to image embeddings.
        prefill: seconds from embeddings to the first logits.
        decode: seconds a token.
        tiles: how many tiles the image had.
        prompt_tokens: how many tokens the prompt had, those of the image included.
        bandwidth: bytes a second that as many threads read from memory in this run; None if the graphs ran elsewhere.
        bandwidth_size: bytes read to measure that; None likewise.
        bandwidth_threads: threads that read them; None likewise.
        cache_bytes: bytes that the processor's last caches hold; None likewise, 0 if unknown.
        token_bytes: bytes that a decoded token reads, weights and KV cache.
        bundle_bytes: the size of the bundle.
        peak_memory: the most resident memory of this process so far, bytes; None where the system does not say.
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
    bandwidth_size: int | None
    bandwidth_threads: int | None
    cache_bytes: int | None
    token_bytes: int
    bundle_bytes: int
    peak_memory: int | None

    @property
    def limit_share(self) -> float | None:
        """The speed of decoding as a share of what reading the bytes of a token from memory allows."""
        return None if self.bandwidth is None else self.token_bytes / self.bandwidth / self.decode


def measure(
    bundle: Path,
    image: ImageInput | None = None,
    options: LoadOptions | None = None,
    new_tokens: int = 32,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda step: None,
) -> Figures:
    """Load a bundle and answer a prompt about an image `repeats` times, `new_tokens` tokens each, whatever they are.

    Raises:
        InputError: for too few tokens or repeats, or more tokens than the model has positions or the machine memory;
            and whatever `load` and `generate` raise.
    """
    if new_tokens < 2 or repeats < 1:
        raise InputError(f"{new_tokens} tokens, {repeats} times, cannot be measured; give 2 or more, once or more")
    options = options or LoadOptions()
    progress("load")
    start = time.perf_counter()
    vlm = VLM(bundle, options)
    loaded = time.perf_counter() - start
    if image is None:
        image = np.indices((*SIZE[::-1], 3)).sum(0).astype(np.uint8)
    prompt = vlm.manifest.proof.prompt if vlm.manifest.proof else PROMPT
    runs = []
    for repeat in range(1, repeats + 1):
        progress(f"answer {repeat} of {repeats}")
        encoded, times = _answer(vlm, prompt, image, new_tokens)
        runs.append(times)
    if len(runs) > 1:
        runs = runs[1:]  # the first one sets buffers up
    peak = _peak_memory()
    progress("read memory")
    on_host = vlm.pipeline.engine.target.row.on_host
    memory = bandwidth(options.threads or os.cpu_count() or 1) if on_host else None
    spec, weights = vlm.manifest.graphs[contract.DECODER], vlm.manifest.graph_bytes(contract.DECODER)
    return Figures(
        provider=vlm.provider,
        load=loaded,
        **{stage: median(times[stage] for times in runs) for stage in runs[0]},
        tiles=sum(map(len, encoded.tiles)),
        prompt_tokens=len(encoded.ids),
        bandwidth=memory and memory.rate,
        bandwidth_size=memory and memory.size,
        bandwidth_threads=memory and memory.threads,
        cache_bytes=memory and memory.caches,
        token_bytes=weights + Cache.nbytes(spec, 1, len(encoded.ids) + new_tokens // 2),
        bundle_bytes=sum(file.size for file in vlm.manifest.files.values()),
        peak_memory=peak,
    )


def _answer(vlm: VLM, prompt: str, image: ImageInput, new_tokens: int) -> tuple[EncodedPrompt, dict[str, float]]:
    """The encoded prompt, and the seconds of each stage."""
    clock, seconds = [time.perf_counter()], {}

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    pipeline = vlm.pipeline
    encoded = pipeline.encode_prompt(prompt, pipeline.read_media([image], [])).prompt
    pipeline.allowed_new_tokens([encoded], new_tokens, copies=1)
    seconds["preprocess"] = lap()
    embeds = pipeline.engine.embed(encoded)
    seconds["vision"] = lap()
    logits, run = pipeline.engine.start([embeds], new_tokens)
    seconds["prefill"] = lap()
    steps = []
    for _ in range(new_tokens):
        logits = run.step(np.zeros(1, np.int64), logits.argmax(-1))
        steps.append(lap())
    return encoded, {**seconds, "decode": median(steps)}


def read_size() -> int:
    """Bytes to read so that caches cannot hold them: four times what they hold, 1 GiB or more; half of the free memory
    if that is less."""
    enough = max(READ_AT_LEAST, CACHES * cache_bytes())
    free = free_memory()
    return enough if free is None else max(1, min(enough, free // 2))


def bandwidth(threads: int) -> Bandwidth:
    """How fast `threads` threads read memory together: the best of eight times."""
    size = read_size()
    parts = np.array_split(np.ones(size, np.uint8), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(np.ndarray.max, parts))  # NumPy releases the interpreter while it reads
            seconds.append(time.perf_counter() - start)
    return Bandwidth(size / min(seconds), size, threads, cache_bytes())


def _peak_memory() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
