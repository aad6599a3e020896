"""Runtimes that `speed.py` asks for the same work, each in a process of its own, told by lines of JSON.

    python contestants.py KIND MODEL [KEY=VALUE]...

KIND is a name of `CONTESTANTS`, MODEL what it loads: for `ours` a bundle, for `torch` a checkpoint, for the others what
`peers.py` makes of one. A line {"work": "decode", "tokens": 256, "steps": 16} names a method and its arguments and is
answered by a line with what it returned. All work is done by two threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from contestant import PROMPT, THREADS, Contestant, read_picture, seconds
from other_contestants import GenAI, LlamaCpp, LlamaServer, OpenVino, OpenVinoAnswers


class Ours(Contestant):
    def __init__(
        self,
        model: str,
        max_tiles: str | None = None,
        expand_weights: str | None = None,
        share_weights: str | None = None,
    ) -> None:
        import dataclasses

        import numpy as np
        from onnx_vlm.runtime import Limits, load

        self._start = time.perf_counter()
        # Rounds ask the same: nothing that an earlier one computed or answered may help.
        limits = Limits(embedding_memory=0)
        chosen = {"expand_weights": expand_weights is not None, "share_weights": share_weights is not None}
        self.np = np
        self.vlm = load(model, threads=THREADS, look_ahead=False, limits=limits, **chosen)
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
        return {"load": self._loaded, "first": time.perf_counter() - self._start, **self.memory()}

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
            inputs = read_picture(self.processor, picture).to(self.dtype)
            length.append(inputs["input_ids"].shape[1])
            self.model.generate(
                **inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False, num_beams=1
            )

        return {"answer": seconds(work), "prompt_tokens": length[0]}


CONTESTANTS = {
    "ours": Ours,
    "torch": Torch,
    "llama.cpp": LlamaCpp,
    "llama-server": LlamaServer,
    "openvino": OpenVino,
    "openvino answers": OpenVinoAnswers,
    "genai": GenAI,
}


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
