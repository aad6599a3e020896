"""What a contestant of `speed.py` is, and what all of them share."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

THREADS = 2
PROMPT = "describe the picture"


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_picture(processor: Any, picture: str) -> Any:
    """The inputs that a processor of transformers makes of a picture's file and `PROMPT`."""
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    if not processor.chat_template:
        return processor(text=PROMPT, images=image, return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=text, images=[image], add_special_tokens=False, return_tensors="pt")


class Contestant:
    """A decoder: `prefill` forgets all and reads random tokens, `step` appends a token to each row."""

    def memory(self) -> dict[str, float]:
        """Resident bytes now, and at most."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"resident": pages * os.sysconf("SC_PAGE_SIZE"), "peak": peak}

    def prefill(self, tokens: int, rows: int) -> None:
        raise NotImplementedError

    def step(self) -> None:
        raise NotImplementedError

    def decode(self, tokens: int, steps: int, rows: int = 1) -> dict[str, float]:
        """Seconds of a prefill of `tokens` a row, and of a step after it, the median of `steps`."""
        prefill = seconds(lambda: self.prefill(tokens, rows))
        return {"prefill": prefill, **self.go_on(steps)}

    def go_on(self, steps: int) -> dict[str, float]:
        """Seconds of a step, the median of `steps`."""
        return {"step": median(seconds(self.step) for _ in range(steps))}
