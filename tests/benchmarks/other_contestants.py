"""Contestants of `speed.py` besides onnx-vlm and transformers."""

from __future__ import annotations

import json
from pathlib import Path

from contestant import THREADS, Contestant, read_picture, seconds


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


class LlamaServer(Contestant):
    """llama.cpp's server, from xllamacpp, by the times that it tells: of a whole request, not of a step."""

    def __init__(self, model: str) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = model, 2048, 1
        params.n_batch = params.n_ubatch = 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
        params.warmup = False
        self._server = xllamacpp.Server(params)

    def decode(self, tokens: int, steps: int, rows: int = 1) -> dict[str, float]:
        asked = {"prompt": [5 + place % 1000 for place in range(tokens)], "n_predict": steps, "cache_prompt": False}
        told = self._server.handle_completions(asked | {"ignore_eos": True, "temperature": 0})["timings"]
        assert told["prompt_n"] == tokens, told
        return {"prefill": told["prompt_ms"] / 1000, "step": told["predicted_per_token_ms"] / 1000}


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


class OpenVinoAnswers(Contestant):
    """The whole vision-language model that optimum-intel exports, run by optimum-intel."""

    def __init__(self, model: str) -> None:
        from optimum.intel import OVModelForVisualCausalLM
        from transformers import AutoProcessor

        config = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        self.model = OVModelForVisualCausalLM.from_pretrained(model, device="CPU", ov_config=config)
        self.processor = AutoProcessor.from_pretrained(model)

    def answer(self, picture: str, new_tokens: int) -> dict[str, float]:
        length = []

        def work() -> None:
            inputs = read_picture(self.processor, picture)
            length.append(inputs["input_ids"].shape[1])
            self.model.generate(
                **inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False, num_beams=1
            )

        return {"answer": seconds(work), "prompt_tokens": length[0]}


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
