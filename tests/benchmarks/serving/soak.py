"""A server under load for long: its memory, threads and open files must stay as they are after two tenths.

    python tests/benchmarks/serving/soak.py BUNDLE

starts `onnx-vlm serve`, asks 10,000 times (streamed and not, with images, n, logprobs, and what is refused), leaves
1,000 answers before their end, and prints a row for each tenth. Status 1 if something grows. Linux alone: it reads
/proc.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]
import shapes  # noqa: E402
from server_helpers import asking, data_uri, image_part, png  # noqa: E402

CHAT = "/v1/chat/completions"
TENTHS = 10
IMAGES = 16  #: different images, so that the caches come to rest
GROWTH = 16 << 20  #: bytes that memory may grow by after two tenths
WORKERS = 40  #: threads that anyio keeps at most for reading requests; idle ones end after a while


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    memory: int
    threads: int
    files: int

    @classmethod
    def of(cls, process: int) -> Held:
        """What it holds now."""
        status = Path(f"/proc/{process}/status").read_text()
        kilobytes, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
        return cls(kilobytes << 10, threads, len(os.listdir(f"/proc/{process}/fd")))


@contextmanager
def server(bundle: Path) -> Iterator[tuple[str, int]]:
    """The URL and the process of a server."""
    code = "from onnx_vlm.runtime.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = next(found for line in process.stderr if (found := re.search(r" at (http://\S+)", line)))
            asyncio.get_running_loop().run_in_executor(None, process.stderr.read)  # its log is read on
            yield said[1], process.pid
        finally:
            process.terminate()


def bodies(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Requests of all kinds."""
    images = [image_part(data_uri(png(shapes.draw(shapes.scene(seed))))) for seed in range(IMAGES)]
    while True:
        body: dict[str, Any] = {"messages": asking("caption", draw.choice(images)), "max_tokens": 4}
        body |= draw.choice(({}, {"stream": True}, {"n": 2, "seed": draw.randrange(9)}, {"logprobs": True}))
        if draw.random() < 0.1:
            body |= draw.choice(({"tools": [1]}, {"messages": asking("x", image_part("data:image/png;base64,AAAA"))}))
        yield body


async def ask(client: httpx.AsyncClient, body: dict[str, Any], seen: Counter[str]) -> None:
    """Send a request and read the answer."""
    answer = await client.post(CHAT, json=body)
    seen[str(answer.status_code)] += 1


async def leave(client: httpx.AsyncClient, body: dict[str, Any], seen: Counter[str]) -> None:
    """Send a request for a long answer, and close the connection at its first piece."""
    long = {"messages": body["messages"], "stream": True, "max_tokens": 100, "min_new_tokens": 100}
    async with client.stream("POST", CHAT, json=long) as answer:
        async for _ in answer.aiter_raw():
            break
    seen["left"] += 1


async def soak(bundle: Path, requests: int, cancels: int, clients: int) -> bool:
    """Whether nothing grows."""
    draw, seen, rows = random.Random(0), Counter(), []
    source = bodies(draw)
    with server(bundle) as (url, process):
        print(f"{'requests':>9} {'MB':>7} {'threads':>8} {'files':>6}  answers")
        for tenth in range(1, TENTHS + 1):
            kinds = [ask] * (requests // TENTHS) + [leave] * (cancels // TENTHS)
            draw.shuffle(kinds)
            todo = iter(kinds)
            limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
            async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

                async def work(client: httpx.AsyncClient = client, todo: Iterator[Any] = todo) -> None:
                    for kind in todo:
                        await kind(client, next(source), seen)

                await asyncio.gather(*(work() for _ in range(clients)))
            await until_idle(url)
            held = Held.of(process)
            rows.append(held)
            row = f"{tenth * len(kinds):>9} {held.memory / 1e6:>7.1f} {held.threads:>8} {held.files:>6}"
            print(f"{row}  {dict(sorted(seen.items()))}", flush=True)
    most = Held(*(max(getattr(row, name) for row in rows[:2]) for name in ("memory", "threads", "files")))
    last = rows[-1]
    memory_is_flat = last.memory <= most.memory + GROWTH
    flat = memory_is_flat and last.threads <= most.threads + WORKERS and last.files <= most.files
    print("nothing grows" if flat else "something grows")
    return flat


async def until_idle(url: str) -> None:
    """Wait until the server answers nothing, and has noticed that its clients have gone."""
    text = ""
    while not re.search(r"^onnx_vlm_rows\{.*\} 0\.0$", text, re.MULTILINE):
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient(base_url=url) as client:
            text = (await client.get("/metrics")).text
    await asyncio.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--cancels", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    sys.exit(not asyncio.run(soak(arguments.bundle, arguments.requests, arguments.cancels, arguments.clients)))
