"""A machine with a GPU: are answers the same there, and how fast do they come?

    python tests/benchmarks/gpu.py PROCESSORS [--provider cuda] [--model PerceptionLM-1B] [--new-tokens 128]

First the four trained checkpoints, in float16: every stage against the bundle's proof, and tokens against those of the
same bundle on the CPU, one by one, in a batch, with beams, and with a step replayed as a CUDA graph where the graph
allows that. Then a random model of real size, of `true_sizes.py` (PROCESSORS is what `real_size.py` takes): tokens a
second one at a time, against transformers with a static cache under torch.compile, which replays CUDA graphs too, and
both as a share of what the bytes of a token allow at the bandwidth that a copy within the GPU's memory reaches.
`--model none` leaves that out, and `--provider cpu` runs the first part without a GPU. Status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]
import shapes  # noqa: E402
import torch  # noqa: E402
from helpers import CHECKPOINTS  # noqa: E402
from onnx_vlm.export import export_model  # noqa: E402
from onnx_vlm.runtime import ProviderError, bench, load  # noqa: E402
from onnx_vlm.runtime.providers.load_options import LoadOptions  # noqa: E402
from onnx_vlm.runtime.verify import verify  # noqa: E402
from real_size import write_checkpoint  # noqa: E402
from true_sizes import MODELS  # noqa: E402

PROMPTS = {
    "paligemma": ("caption", "how many circles"),
    "paligemma2": ("caption", "how many circles"),
    "perception_lm": ("Describe the picture.", "How many circles are there?"),
    "kosmos2": ("<grounding> An image of", "Describe this image:"),
}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "4 beams": {"num_beams": 4}}
READ = 1 << 30  #: bytes


def parity(provider: str, work: Path) -> bool:
    """Print a line for each checkpoint and way; whether all is as on the CPU."""
    good = True
    for name, prompts in PROMPTS.items():
        bundle = export_model(CHECKPOINTS / name, work / name, precision="fp16")
        failed = [check for check in verify(bundle, LoadOptions(provider)) if not check.passed]
        print(f"{name}: every stage as in its proof" if not failed else f"{name}: {failed}", flush=True)
        good &= not failed
        pictures = [shapes.draw(shapes.scene(shapes.HELD_OUT + number)) for number in range(8)]
        asked = [prompts[number % 2] for number in range(8)]
        host = load(bundle, "cpu")
        for options in ({}, {"cuda_graph": "on"}) if provider == "cuda" else ({},):
            try:
                vlm = load(bundle, provider, provider_options=options)
            except ProviderError as error:
                print(f"  {options or ''} {error}")
                good &= bool(options)  # not every graph can be captured, and those say so
                continue
            for way, chosen in WAYS.items():
                wanted = [answer.token_ids for answer in host.generate(asked, pictures, **chosen)]
                alone = [vlm.generate(one, picture, **chosen).token_ids for one, picture in zip(asked, pictures)]
                together = [answer.token_ids for answer in vlm.generate(asked, pictures, **chosen)]
                same = [sum(a == b for a, b in zip(wanted, found)) for found in (alone, together)]
                print(
                    f"  {way} {options or ''}: {same[0]} of 8 answers equal alone, {same[1]} of 8 together", flush=True
                )
                good &= same == [8, 8]
    return good


def bandwidth() -> float:
    """Bytes a second that a copy within the GPU's memory reads and writes."""
    source = torch.ones(READ, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * READ / (time.perf_counter() - start))
    return best


def torch_seconds(checkpoint: Path, prompt_tokens: int, new_tokens: int) -> float:
    """Seconds a token of the source's language model with a static cache, compiled with CUDA graphs."""
    from transformers import AutoModelForImageTextToText, StaticCache

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float16, device_map="cuda").eval()
    language, head = model.get_decoder(), model.get_output_embeddings()
    cache = StaticCache(language.config, max_cache_len=prompt_tokens + new_tokens + 1)

    def step(ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        hidden = language(input_ids=ids, past_key_values=cache, cache_position=position, use_cache=True)[0]
        return head(hidden[:, -1:]).argmax(-1)

    with torch.inference_mode():
        ids = step(torch.ones(1, prompt_tokens, dtype=torch.int64, device="cuda"), torch.arange(prompt_tokens).cuda())
        compiled, seconds = torch.compile(step, mode="reduce-overhead", fullgraph=True), []
        for number in range(new_tokens):
            torch.cuda.synchronize()
            start = time.perf_counter()
            ids = compiled(ids.clone(), torch.tensor([prompt_tokens + number], device="cuda"))
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return median(seconds[new_tokens // 4 :])  # the first compile and capture


def speed(name: str, processors: Path, work: Path, new_tokens: int) -> None:
    """Print tokens a second, and the share of the bandwidth, of a model of real size."""
    checkpoint = work / "checkpoint"
    parameters, _ = write_checkpoint(checkpoint, processors, name)
    bundle = export_model(checkpoint, work / "bundle", precision="fp16", prove=False)
    rate = bandwidth()
    print(f"{name}, {parameters / 1e9:.2f} B parameters, float16, one answer of {new_tokens} tokens")
    print(f"{torch.cuda.get_device_name()}: a copy within its memory reaches {rate / 1e9:.0f} GB/s")
    plain = bench.measure(bundle, options=LoadOptions("cuda"), new_tokens=new_tokens)
    limit = plain.token_bytes / rate
    print(f"onnx-vlm: {1 / plain.decode:.1f} tokens/s, {limit / plain.decode:.0%} of the bandwidth")
    captured = LoadOptions("cuda", provider_options={"cuda_graph": "on"})
    try:
        found = bench.measure(bundle, options=captured, new_tokens=new_tokens)
        print(f"onnx-vlm, CUDA graph: {1 / found.decode:.1f} tokens/s, {limit / found.decode:.0%} of the bandwidth")
    except ProviderError as error:
        print(f"onnx-vlm, CUDA graph: {error}")
    seconds = torch_seconds(checkpoint, plain.prompt_tokens, new_tokens)
    print(f"torch, compiled: {1 / seconds:.1f} tokens/s, {limit / seconds:.0%} of the bandwidth")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processors", type=Path)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--model", default="PerceptionLM-1B", choices=[*MODELS, "none"])
    parser.add_argument("--new-tokens", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = parity(options.provider, Path(folder))
        if options.model != "none" and options.provider == "cuda":
            speed(options.model, options.processors, Path(folder), options.new_tokens)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
