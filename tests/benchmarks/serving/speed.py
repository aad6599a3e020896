"""How fast the server answers many clients at once, beside `generate` alone and llama.cpp's server, in one run.

    python tests/benchmarks/serving/speed.py BUNDLE [--clients 1 4 8 16] [--requests N] [--rate R] [--image own|one]
        [--words N] [--new-tokens N] [--expand-weights]
        [--llama LLAMA.gguf --python PYTHON] [--genai FOLDER --genai-python PYTHON]

`real_size.py --keep` makes bundles of true dimensions, `../peers.py` the file for llama.cpp; PYTHON is the interpreter
of an environment with xllamacpp, which carries llama.cpp's server, or with openvino-genai; FOLDER is what optimum-intel
exported a decoder of the same dimensions to. Every peer is a process; only one works at a time. A request has a prompt
of its own, of --words words, and an answer of --new-tokens tokens; with `--image own` an image of its own too, with
`--image one` all ask about the same image. Clients are a closed loop: each asks again as soon as it is answered.
`--rate` lets requests arrive at random instead, so many a second.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from peers import GENAI, GENERATE, LLAMA, Process

WORDS = ("picture", "of", "a", "garden", "with", "three", "old", "trees", "and", "one", "red", "bench", "near", "water")
HOST = "127.0.0.1"


@dataclass
class Asked:
    """One request: when it was sent, and when each piece of its answer came."""

    sent: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0

    @property
    def gaps(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.pieces, self.pieces[1:])]


class OpenAI:
    """Speaks to our server."""

    path = "/v1/chat/completions"

    def __init__(self, words: int, new_tokens: int, image: str | None) -> None:
        self._words, self._new_tokens, self._image = words, new_tokens, image

    def body(self, number: int) -> dict[str, Any]:
        words = random.Random(number).choices(WORDS, k=self._words)
        content: list[dict[str, Any]] = [{"type": "text", "text": " ".join(words)}]
        if self._image:
            url = _image(number if self._image == "own" else 0)
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,  # so that a token whose text is empty has an event too
        }

    def read(self, event: dict[str, Any], asked: Asked) -> bool:
        """Take an event's numbers; whether it has a token."""
        if error := event.get("error"):
            sys.exit(f"the server failed: {error['message']}")
        if usage := event.get("usage"):
            asked.tokens, asked.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        return any(choice.get("logprobs") for choice in event["choices"])


class Llama:
    """Speaks to llama.cpp's server."""

    path = "/completion"

    def __init__(self, prompt_tokens: int, new_tokens: int) -> None:
        self._prompt_tokens, self._new_tokens = prompt_tokens, new_tokens

    def body(self, number: int) -> dict[str, Any]:
        ids = random.Random(number).choices(range(10, 120_000), k=self._prompt_tokens)
        return {
            "prompt": ids,
            "n_predict": self._new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "cache_prompt": False,
        }

    def read(self, event: dict[str, Any], asked: Asked) -> bool:
        if event.get("stop"):
            asked.tokens, asked.prompt_tokens = event["tokens_predicted"], event["tokens_evaluated"]
        return bool(event.get("content"))


async def ask(port: int, peer: OpenAI | Llama, number: int) -> Asked:
    """Send a request and take its answer piece by piece."""
    body = json.dumps(peer.body(number)).encode()
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 24)
    head = (
        f"POST {peer.path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    asked = Asked(time.perf_counter())
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    async for event in _events(reader):
        if peer.read(event, asked):
            asked.pieces.append(time.perf_counter())
    writer.close()
    if not asked.tokens:
        sys.exit(f"{peer.path} gave no answer")
    return asked


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    status = await reader.readline()
    if b" 200 " not in status:
        sys.exit(f"the server said {status.decode().strip()}: {(await reader.read(2000)).decode()}")
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :])


async def closed_loop(port: int, peer: OpenAI | Llama, clients: int, requests: int) -> list[Asked]:
    """`clients` clients ask `requests` requests in all."""
    numbers, asked = iter(range(requests)), []

    async def client() -> None:
        for number in numbers:
            asked.append(await ask(port, peer, 1000 * clients + number))

    await asyncio.gather(*(client() for _ in range(clients)))
    return asked


async def arrivals(port: int, peer: OpenAI | Llama, rate: float, requests: int) -> list[Asked]:
    """Requests arrive at random, `rate` a second."""
    waits, tasks = random.Random(0), []
    for number in range(requests):
        tasks.append(asyncio.create_task(ask(port, peer, 10**6 + number)))
        await asyncio.sleep(waits.expovariate(rate))
    return await asyncio.gather(*tasks)


def row(name: str, asked: list[Asked], seconds: float) -> str:
    first = [one.pieces[0] - one.sent for one in asked if one.pieces]
    gaps = [gap for one in asked for gap in one.gaps]
    tokens = sum(one.tokens for one in asked)
    return (
        f"| {name} | {len(asked) / seconds:.2f} | {tokens / seconds:.1f} | {median(first):.2f} | {_high(first):.2f} |"
        f" {1000 * median(gaps):.0f} | {1000 * _high(gaps):.0f} | {_high(gaps) / median(gaps):.1f} |"
    )


def _high(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def _image(number: int) -> str:
    """A photograph-like image of its own, as a data URI."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((448, 448), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def alone(bundle: Path, port: int, peer: OpenAI, new_tokens: int, requests: int) -> str:
    """A client's tokens a second beside those of `generate`, in turns."""
    ours, theirs = [], []
    generate = Process([sys.executable, "-c", GENERATE, bundle, new_tokens], lambda line: line == "ready\n")
    for number in range(requests + 1):
        seconds, tokens = generate.ask(peer.body(10**7 + number)["messages"][0]["content"][0]["text"])
        start = time.perf_counter()
        asked = asyncio.run(ask(port, peer, 10**7 + number))
        if number:  # the first warms up
            theirs.append(seconds / tokens)
            ours.append((time.perf_counter() - start) / asked.tokens)
    generate.stop()
    ratio = median(one / other for one, other in zip(ours, theirs))
    speeds = f"{1 / median(ours):.1f} tokens a second, generate {1 / median(theirs):.1f}"
    return f"One client: {speeds}; its time is {ratio:.3f} of generate's."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=3, help="for each client")
    parser.add_argument("--rate", type=float, help="requests a second that arrive at random")
    parser.add_argument("--image", choices=["own", "one"])
    parser.add_argument("--words", type=int, default=230)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--expand-weights", action="store_true")
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--genai-python", default=sys.executable)
    options = parser.parse_args()

    command = [sys.executable, "-c", "from onnx_vlm.runtime.cli import main; main()", "serve", options.bundle]
    command += ["--expand-weights"] * options.expand_weights
    server = Process([*command, "--port", "0", "--max-rows", 8], lambda line: "http://" in line)
    port = int(server.line.rsplit(":", 1)[1].split("/")[0].split()[0])
    ours = OpenAI(options.words, options.new_tokens, options.image)
    warm = asyncio.run(_patiently(port, ours))
    if not options.image:
        print(alone(options.bundle, port, ours, options.new_tokens, 3 * options.requests), flush=True)
    print(f"Prompts of {warm.prompt_tokens} tokens, answers of {options.new_tokens}.\n")
    print("| | requests/s | tokens/s | first token, s | 99th | between tokens, ms | 99th | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    llama = None
    if options.llama:
        started = [options.python, "-c", LLAMA, options.llama, port + 1, 8]
        llama = Process(started, lambda line: line.startswith("http"))
    contestants: dict[str, tuple[int, OpenAI | Llama]] = {"ours": (port, ours)}
    if llama:
        contestants["llama.cpp"] = (port + 1, Llama(warm.prompt_tokens, options.new_tokens))
    genai = None
    if options.genai:
        genai = Process([options.genai_python, "-c", GENAI, options.genai], lambda line: line == "ready\n")
    for clients in options.clients:
        for name, (at, peer) in contestants.items():
            start = time.perf_counter()
            asked = asyncio.run(closed_loop(at, peer, clients, clients * options.requests))
            print(row(f"{name}, {clients} clients", asked, time.perf_counter() - start), flush=True)
        if genai:
            start = time.perf_counter()
            answered = genai.ask([clients, clients * options.requests, warm.prompt_tokens, options.new_tokens])
            asked = [Asked(sent, pieces, len(pieces), warm.prompt_tokens) for sent, pieces in answered]
            print(row(f"OpenVINO GenAI, {clients} clients", asked, time.perf_counter() - start), flush=True)
    if options.rate:
        for name, (at, peer) in contestants.items():
            start = time.perf_counter()
            asked = asyncio.run(arrivals(at, peer, options.rate, 8 * options.requests))
            label = f"{name}, {options.rate:g} arrivals a second"
            print(row(label, asked, time.perf_counter() - start), flush=True)


async def _patiently(port: int, peer: OpenAI) -> Asked:
    """The first answer, once the model is loaded."""
    while True:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(f"GET /health HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
        writer.close()
        if b" 200 " in status:
            return await ask(port, peer, 0)
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    main()
