"""How fast bundles are beside other runtimes, in one run: a table of medians over interleaved rounds, and their ratios.

    python tests/benchmarks/speed.py decoder BUNDLE --checkpoint CHECKPOINT [--peers FOLDER --python PYTHON]
    python tests/benchmarks/speed.py prompts BUNDLE [--peer KIND MODEL PYTHON]...
    python tests/benchmarks/speed.py vision  BUNDLE --checkpoint CHECKPOINT
    python tests/benchmarks/speed.py picture BUNDLE --checkpoint CHECKPOINT --picture FILE [--tiles N]
    python tests/benchmarks/speed.py answer  BUNDLE --checkpoint CHECKPOINT --picture FILE [--tiles N]
    python tests/benchmarks/speed.py answer  BUNDLE --dtypes --picture FILE --openvino FOLDER --python PYTHON
    python tests/benchmarks/speed.py scaling BUNDLE
    python tests/benchmarks/speed.py loading BUNDLE

`real_size.py --keep` makes checkpoints and bundles of true dimensions, `peers.py` what the other runtimes load; PYTHON
is the interpreter of the environment that they are installed in. FOLDER is a whole model of optimum-intel
(`optimum-cli export openvino --task image-text-to-text --weight-format int4`). Every contestant is a process that stays
loaded and works with two threads, one at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
DTYPES = ("bfloat16", "float32")


class Worker:
    """A contestant in a process of its own."""

    def __init__(self, kind: str, model: Path, python: str = sys.executable, **settings: str | int) -> None:
        given = [f"{key}={value}" for key, value in settings.items() if value is not None]
        self._process = subprocess.Popen(
            [python, str(HERE / "contestants.py"), kind, str(model), *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def ask(self, work: str, **asked: Any) -> dict[str, float]:
        print(json.dumps({"work": work, **asked}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args} stopped with status {self._process.wait()}")
        return json.loads(line)

    def memory(self) -> tuple[int, int]:
        """Its share of resident bytes, which divides pages among the processes that have them, and bytes of its own."""
        lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {key: int(size.split()[0]) << 10 for key, size in (line.split(":") for line in lines)}
        return sizes["Pss"], sizes["Private_Dirty"]

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def interleaved(
    workers: dict[str, Worker], options: argparse.Namespace, work: str, **asked: Any
) -> dict[str, dict[str, float]]:
    """What each contestant answers, the medians of all rounds after those that warm up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(options.warmup + options.rounds):
        for name, worker in workers.items():
            answer = worker.ask(work, **asked)
            if turn >= options.warmup:
                found[name].append(answer)
    return {name: {key: median(one[key] for one in some) for key in some[0]} for name, some in found.items()}


def row(what: str, ours: str, against: str, theirs: str, ratio: float) -> None:
    print(f"| {what} | {ours} | {against} | {theirs} | {ratio:.2f} |", flush=True)


def torches(options: argparse.Namespace) -> dict[str, Worker]:
    return {
        f"torch {dtype}": Worker("torch", options.checkpoint, dtype=dtype, max_tiles=options.tiles)
        for dtype in options.dtypes
    }


def decoder(options: argparse.Namespace) -> None:
    workers = {"ours": Worker("ours", options.bundle), **torches(options)}
    if options.peers is not None:
        files = {"llama.cpp": "llama.gguf", "openvino": "openvino", "genai": "genai"}
        workers |= {kind: Worker(kind, options.peers / file, options.python) for kind, file in files.items()}
    weights = (options.bundle / "decoder.onnx.data").stat().st_size
    for tokens in (256, 1024):
        found = interleaved(workers, options, "decode", tokens=tokens, steps=16)
        bandwidth = interleaved({"ours": workers["ours"]}, options, "bandwidth")["ours"]["bandwidth"]
        ours = found.pop("ours")
        for name, theirs in found.items():
            a, b = tokens / ours["prefill"], tokens / theirs["prefill"]
            row(f"prefill of {tokens} tokens", f"{a:.1f} tok/s", name, f"{b:.1f} tok/s", a / b)
        for name, theirs in found.items():
            a, b = 1 / ours["step"], 1 / theirs["step"]
            row(f"decode after {tokens} tokens", f"{a:.1f} tok/s", name, f"{b:.1f} tok/s", a / b)
        limit = bandwidth / weights
        row(
            f"decode after {tokens} tokens",
            f"{1 / ours['step']:.1f} tok/s",
            "weights at the memory's speed",
            f"{limit:.1f} tok/s",
            1 / ours["step"] / limit,
        )


def prompts(options: argparse.Namespace) -> None:
    """Reading prompts with and without expanded weights, beside others."""
    workers = {"blocks": Worker("ours", options.bundle), "columns": Worker("ours", options.bundle, expand_weights=1)}
    workers |= {kind: Worker(kind, Path(model), python) for kind, model, python in options.peer}
    for tokens in (256, 1024):
        found = interleaved(workers, options, "decode", tokens=tokens, steps=8)
        for ours in ("columns", "blocks"):
            for name in [name for name in found if name != ours]:
                a, b = tokens / found[ours]["prefill"], tokens / found[name]["prefill"]
                row(f"prefill of {tokens} tokens, {ours}", f"{a:.1f} tok/s", name, f"{b:.1f} tok/s", a / b)
    for name in ("blocks", "columns"):
        resident = interleaved({name: workers[name]}, options, "memory")[name]
        row(f"memory, {name}", f"{resident['resident'] / 1e9:.2f} GB", "peak", f"{resident['peak'] / 1e9:.2f} GB", 1)


def processor() -> str:
    """The processor, and those of its abilities that matter to products."""
    known = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    return f"{lines.get('model name')}: {' '.join(flag for flag in known if flag in lines.get('flags', '').split())}"


def vision(options: argparse.Namespace) -> None:
    found = interleaved({"ours": Worker("ours", options.bundle), **torches(options)}, options, "vision", tiles=1)
    ours = found.pop("ours")["vision"]
    for name, theirs in found.items():
        row("vision encoder, one tile", f"{ours:.2f} s", name, f"{theirs['vision']:.2f} s", theirs["vision"] / ours)


def picture(options: argparse.Namespace) -> None:
    workers = {"ours": Worker("ours", options.bundle, max_tiles=options.tiles), **torches(options)}
    found = interleaved(workers, options, "prepare", picture=str(options.picture))
    ours = found.pop("ours")["prepare"]
    for name, theirs in found.items():
        row("a picture's file to tiles", f"{ours:.2f} s", name, f"{theirs['prepare']:.2f} s", theirs["prepare"] / ours)


def answer(options: argparse.Namespace) -> None:
    workers = {"ours": Worker("ours", options.bundle, max_tiles=options.tiles), **torches(options)}
    if options.openvino is not None:
        workers["openvino"] = Worker("openvino answers", options.openvino, options.python)
    spent: dict[int, dict[str, float]] = {}
    for new_tokens in (1, 64):
        found = interleaved(workers, options, "answer", picture=str(options.picture), new_tokens=new_tokens)
        assert len({one["prompt_tokens"] for one in found.values()}) == 1, found
        spent[new_tokens] = {name: one["answer"] for name, one in found.items()}
        ours = found.pop("ours")["answer"]
        for name, theirs in found.items():
            what = f"picture to {'first token' if new_tokens == 1 else f'{new_tokens} tokens'}"
            row(what, f"{ours:.2f} s", name, f"{theirs['answer']:.2f} s", theirs["answer"] / ours)
    rates = {name: 63 / (spent[64][name] - first) for name, first in spent[1].items()}
    ours = rates.pop("ours")
    for name, theirs in rates.items():
        row("tokens after the first", f"{ours:.1f} tok/s", name, f"{theirs:.1f} tok/s", ours / theirs)
    memory = {name: worker.ask("memory")["peak"] / 1e9 for name, worker in workers.items()}
    ours = memory.pop("ours")
    for name, theirs in memory.items():
        row("peak memory", f"{ours:.2f} GB", name, f"{theirs:.2f} GB", theirs / ours)


def scaling(options: argparse.Namespace) -> None:
    size = sum(path.stat().st_size for path in options.bundle.rglob("*") if path.is_file())
    fresh = []
    for _ in range(options.rounds):
        worker = Worker("ours", options.bundle)
        fresh.append(worker.ask("loaded"))
        worker.stop()
    first, resident, peak = (median(one[key] for one in fresh) for key in ("first", "resident", "peak"))
    row("load to first token", f"{first:.2f} s", "-", "-", 1)
    row("memory then", f"{resident / 1e9:.2f} GB", "the bundle", f"{size / 1e9:.2f} GB", resident / size)
    row("peak memory", f"{peak / 1e9:.2f} GB", "the bundle", f"{size / 1e9:.2f} GB", peak / size)
    one, eight = steps(options, (64, 1), (64, 8))
    row("decode of 8 rows", f"{8 / eight:.1f} tok/s", "one row", f"{1 / one:.1f} tok/s", 8 * one / eight)
    short, long = steps(options, (100, 1), (8000, 1))
    row("a token after 8000", f"{1e3 * long:.0f} ms", "after 100", f"{1e3 * short:.0f} ms", long / short)


def loading(options: argparse.Namespace) -> None:
    """Seconds from a process's start to its first token, and the memory of one and of four, without and with shared
    weights. Files are cached by the system, and weights are written before."""
    kinds: tuple[dict[str, int], ...] = ({}, {"share_weights": 1})

    def started(kind: dict[str, int]) -> Worker:
        worker = Worker("ours", options.bundle, **kind)
        worker.ask("loaded")
        return worker

    seconds: list[list[float]] = [[], []]
    for turn in range(options.warmup + options.rounds):
        for kind, taken in zip(kinds, seconds):
            start = time.perf_counter()
            worker = started(kind)
            if turn >= options.warmup:
                taken.append(time.perf_counter() - start)
            worker.stop()
    plain, shared = map(median, seconds)
    row("process start to first token", f"{plain:.2f} s", "shared weights", f"{shared:.2f} s", shared / plain)
    for count in (1, 4):
        found = []
        for kind in kinds:
            workers = [started(kind) for _ in range(count)]
            found.append([median(worker.memory()[index] for worker in workers) for index in (0, 1)])
            for worker in workers:
                worker.stop()
        for what, plain, shared in zip(("share (PSS) of", "private pages of"), *found):
            row(f"{what} each of {count}", f"{plain / 1e6:.0f} MB", "shared", f"{shared / 1e6:.0f} MB", shared / plain)


def steps(options: argparse.Namespace, *work: tuple[int, int]) -> list[float]:
    """Seconds of a step after so many tokens, of so many rows, taken in turns."""
    workers = [Worker("ours", options.bundle) for _ in work]
    for worker, (tokens, rows) in zip(workers, work):
        worker.ask("decode", tokens=tokens, steps=2, rows=rows)
    found = [[worker.ask("go_on", steps=8)["step"] for worker in workers] for _ in range(options.rounds)]
    for worker in workers:
        worker.stop()
    return [median(some) for some in zip(*found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["decoder", "prompts", "vision", "picture", "answer", "scaling", "loading"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--openvino", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--peer", nargs=3, action="append", default=[], metavar=("KIND", "MODEL", "PYTHON"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those that count")
    options = parser.parse_args()
    print(f"{processor()}\n")
    print("| what | ours | against | theirs | ratio |\n|---|---|---|---|---|", flush=True)
    globals()[options.section](options)


if __name__ == "__main__":
    main()
