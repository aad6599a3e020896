"""Runtimes that `speed.py` asks for the same work, each in a process of its own, told by lines of JSON.

    python contestants.py KIND MODEL [KEY=VALUE]...

KIND is a name of `CONTESTANTS`, MODEL what it loads: for `ours` a bundle, for `torch` a checkpoint, for the others what
`peers.py` makes of one. A line {"work": "decode", "tokens": 256, "steps": 16} names a method and its arguments and is
answered by a line with what it returned. All work is done by two threads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
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


class Contestant:
    """A decoder: `prefill` forgets all and reads random tokens, `step` appends a token to each row."""

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


class Ours(Contestant):
    def __init__(self, model: str, max_tiles: str | None = None) -> None:
        import dataclasses

        import numpy as np
        from onnx_vlm.runtime import load

        self._start = time.perf_counter()
        self.np, self.vlm = np, load(model, threads=THREADS)
        self._loaded = time.perf_counter() - self._start
        if max_tiles is not None:
            pipeline = self.vlm.pipeline
            image = dataclasses.replace(pipeline.manifest.image, max_tiles=int(max_tiles))
            pipeline.manifest = dataclasses.replace(pipeline.manifest, image=image)
        self.engine, self.random = self.vlm.pipeline.engine, np.random.default_rng(0)
        graphs = self.vlm.manifest.graphs
        self._pixels, self._hidden = graphs["vision_encoder"].inputs[0].shape, graphs["decoder"].inputs[0].shape[-1]

    def loaded(self) -> dict[str, float]:
        """Seconds of loading, and until the first token of a prompt of 16 tokens; resident bytes then."""
        self.prefill(16, 1)
        first = time.perf_counter() - self._start
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"load": self._loaded, "first": first, "resident": pages * os.sysconf("SC_PAGE_SIZE"), "peak": peak}

    def bandwidth(self) -> dict[str, float]:
        from onnx_vlm.runtime import bench

        return {"bandwidth": bench.bandwidth(THREADS).rate}

    def prefill(self, tokens: int, rows: int) -> None:
        prompts = [0.02 * self.random.standard_normal((tokens, self._hidden), "float32") for _ in range(rows)]
        self._logits, self._run = self.engine.start(prompts, 128)

    def step(self) -> None:
        ids = self._logits.argmax(-1)
        self._logits = self._run.step(self.np.arange(len(ids)), ids)

    def vision(self, tiles: int) -> dict[str, float]:
        """Seconds from `tiles` tiles to their image embeddings."""
        given = self.random.standard_normal((tiles, *self._pixels[1:]), "float32")
        return {"vision": seconds(lambda: self.engine.encode_images(given))}

    def prepare(self, picture: str) -> dict[str, float]:
        """Seconds from a picture's file to its tiles."""
        from onnx_vlm.runtime.images.reading import read
        from onnx_vlm.runtime.images.tiles import tiles

        return {"prepare": seconds(lambda: tiles(read(picture), self.vlm.manifest.image))}

    def answer(self, picture: str, new_tokens: int) -> dict[str, float]:
        """Seconds from a picture's file to an answer of `new_tokens` tokens."""
        answers = []
        spent = seconds(lambda: answers.append(self.vlm.generate(PROMPT, images=picture, max_new_tokens=new_tokens)))
        assert len(answers[0].token_ids) == new_tokens, "the answer ended by itself"
        return {"answer": spent, "prompt_tokens": answers[0].prompt_tokens}


class Torch(Contestant):
    """transformers, in bfloat16 or `dtype`."""

    def __init__(self, model: str, dtype: str = "bfloat16", max_tiles: str | None = None) -> None:
        import torch
        from onnx_vlm.export.tracing.torchvision_import import make_torchvision_importable

        make_torchvision_importable()
        from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch, self.cache, self.dtype = torch, DynamicCache, getattr(torch, dtype)
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=self.dtype).eval()
        self.processor = AutoProcessor.from_pretrained(model)
        if max_tiles is not None:
            self.processor.image_processor.max_num_tiles = int(max_tiles)

    def prefill(self, tokens: int, rows: int) -> None:
        hidden = self.model.config.text_config.hidden_size
        self._past = self.cache()
        self._feed(0.02 * self.torch.randn(rows, tokens, hidden, dtype=self.dtype))

    def step(self) -> None:
        self._feed(self.model.get_input_embeddings()(self._ids[:, None]))

    def _feed(self, inputs_embeds: Any) -> None:
        decoder = self.model.model.language_model
        last = decoder(inputs_embeds=inputs_embeds, past_key_values=self._past, use_cache=True).last_hidden_state
        self._ids = self.model.lm_head(last[:, -1]).argmax(-1)

    def vision(self, tiles: int) -> dict[str, float]:
        tower = self.model.config.vision_config
        side = tower.image_size if hasattr(tower, "image_size") else tower.model_args["img_size"][0]
        pixels = self.torch.randn(tiles, 3, side, side, dtype=self.dtype)
        if self.model.config.model_type == "perception_lm":
            pixels = pixels[None]
        return {"vision": seconds(lambda: self.model.model.get_image_features(pixel_values=pixels))}

    def prepare(self, picture: str) -> dict[str, float]:
        from PIL import Image

        prepared = self.processor.image_processor
        return {"prepare": seconds(lambda: prepared(Image.open(picture).convert("RGB"), return_tensors="pt"))}

    def answer(self, picture: str, new_tokens: int) -> dict[str, float]:
        length = []

        def work() -> None:
            inputs = self._inputs(picture).to(self.dtype)
            length.append(inputs["input_ids"].shape[1])
            self.model.generate(
                **inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False, num_beams=1
            )

        return {"answer": seconds(work), "prompt_tokens": length[0]}

    def _inputs(self, picture: str) -> Any:
        from PIL import Image

        image = Image.open(picture).convert("RGB")
        text = PROMPT
        if self.processor.chat_template:
            content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            return self.processor(text=text, images=[image], add_special_tokens=False, return_tensors="pt")
        return self.processor(text=text, images=image, return_tensors="pt")


class LlamaCpp(Contestant):
    def __init__(self, model: str) -> None:
        import llama_cpp

        self.llama = llama_cpp
        loading, running = llama_cpp.llama_model_default_params(), llama_cpp.llama_context_default_params()
        loading.n_gpu_layers = 0
        running.n_ctx, running.n_batch, running.n_threads, running.n_threads_batch = 2048, 2048, THREADS, THREADS
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), loading)
        self._context = llama_cpp.llama_init_from_model(self._model, running)

    def prefill(self, tokens: int, rows: int) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self._context), True)
        self._length = 0
        self._feed([5] * tokens)

    def step(self) -> None:
        self._feed([7])

    def _feed(self, ids: list[int]) -> None:
        batch = self.llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, self._length + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, place == len(ids) - 1
        assert self.llama.llama_decode(self._context, batch) == 0
        self.llama.llama_synchronize(self._context)
        self.llama.llama_batch_free(batch)
        self._length += len(ids)


class OpenVino(Contestant):
    """The model that optimum-intel exports; its head gets the last position only, as in OpenVINO's own pipeline."""

    def __init__(self, model: str) -> None:
        import numpy as np
        import openvino
        from openvino import opset13

        core = openvino.Core()
        graph = core.read_model(str(Path(model) / "openvino_model.xml"))
        head = graph.output("logits").get_node().input_value(0).get_node()
        hidden = head.input_value(0)
        last = opset13.slice(hidden, np.array([-1]), np.array([np.iinfo(np.int64).max]), np.array([1]), np.array([1]))
        head.input(0).replace_source_output(last.output(0))
        graph.validate_nodes_and_infer_types()
        self.np = np
        compiled = core.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"})
        self._request = compiled.create_infer_request()
        self._names = {name for value in graph.inputs for name in value.get_names()}

    def prefill(self, tokens: int, rows: int) -> None:
        self._request.reset_state()
        self._length = 0
        self._feed([5] * tokens)

    def step(self) -> None:
        self._feed([7])

    def _feed(self, ids: list[int]) -> None:
        start, self._length = self._length, self._length + len(ids)
        inputs = {
            "input_ids": self.np.array([ids]),
            "attention_mask": self.np.ones((1, self._length), self.np.int64),
            "position_ids": self.np.arange(start, self._length)[None],
            "beam_idx": self.np.zeros(1, self.np.int32),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._names})


class GenAI(Contestant):
    def __init__(self, model: str) -> None:
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(model)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": THREADS}}}}))
        self._model = onnxruntime_genai.Model(config)

    def prefill(self, tokens: int, rows: int) -> None:
        settings = self.genai.GeneratorParams(self._model)
        settings.set_search_options(max_length=tokens + 128, do_sample=False)
        self._generator = self.genai.Generator(self._model, settings)
        self._generator.append_tokens([5] * tokens)
        self._generator.get_logits()

    def step(self) -> None:
        self._generator.generate_next_token()


CONTESTANTS = {"ours": Ours, "torch": Torch, "llama.cpp": LlamaCpp, "openvino": OpenVino, "genai": GenAI}


def main() -> None:
    kind, model, *settings = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    contestant = CONTESTANTS[kind](model, **dict(setting.split("=") for setting in settings))
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(contestant, asked.pop("work"))(**asked)), file=answers)


if __name__ == "__main__":
    main()
