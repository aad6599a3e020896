"""The processes that `speed.py` compares: `generate` in a loop, llama.cpp's server, OpenVINO GenAI's batches."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

GENERATE = """
import sys, time, json
from onnx_vlm.runtime import load
vlm = load(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    answer = vlm.generate(json.loads(line), max_new_tokens=int(sys.argv[2]), do_sample=False)
    print(json.dumps([time.perf_counter() - start, len(answer.token_ids)]), flush=True)
"""
LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel, params.port = int(sys.argv[3]), int(sys.argv[2])
params.n_ctx = 1024 * params.n_parallel
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
#: The clients are a closed loop within the process: no HTTP stands between them and the pipeline.
GENAI = """
import json, random, sys, time
import openvino, openvino_genai
scheduler = openvino_genai.SchedulerConfig()
scheduler.cache_size, scheduler.max_num_seqs = 2, 8
pipeline = openvino_genai.ContinuousBatchingPipeline(
    sys.argv[1], scheduler_config=scheduler, device="CPU", properties={"INFERENCE_NUM_THREADS": 2}
)
print("ready", flush=True)
for line in sys.stdin:
    clients, requests, prompt_tokens, new_tokens = json.loads(line)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos = new_tokens, True
    running, asked, begun = {}, [], 0
    while len(asked) < requests:
        while begun < requests and len(running) < clients:
            ids = random.Random(1000 * clients + begun).choices(range(10, 120_000), k=prompt_tokens)
            handle = pipeline.add_request(begun, openvino.Tensor([ids]), config)
            running[begun] = handle, [time.perf_counter(), []]
            begun += 1
        pipeline.step()
        for number, (handle, times) in list(running.items()):
            while handle.can_read():
                tokens = sum(len(output.generated_ids) for output in handle.read().values())
                times[1] += [time.perf_counter()] * tokens
            if handle.get_status() == openvino_genai.GenerationStatus.FINISHED:
                asked.append(times)
                del running[number]
    print(json.dumps(asked), flush=True)
"""


class Process:
    """A process that says in a line when it is ready."""

    def __init__(self, command: list[Any], ready: Callable[[str], bool]) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        atexit.register(self.stop)
        for line in self.process.stdout:
            if ready(line):
                self.line = line
                return
        sys.exit(f"{command[:3]} stopped with status {self.process.wait()}")

    def ask(self, question: Any) -> Any:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
