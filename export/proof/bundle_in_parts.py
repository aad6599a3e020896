"""A written bundle run from disk: a part of one graph in memory at a time, whatever the size of the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ...graphs import contract, manifest
from ...graphs.transforms.expand_blocks import load_columns
from ...graphs.transforms.split import split
from ...runtime.inference.token_embeddings import embed, merge
from ...runtime.providers.ort_session import session_options
from ...runtime.text.prompt import EncodedPrompt, Prompts

#: Bytes of weights in memory at a time. ONNX Runtime lays them out anew, so for a moment they are there twice.
AT_ONCE = 1 << 28

Values = dict[str, np.ndarray]
Probe = Callable[[ir.Model], object]


class OnDisk:
    """The stages of a bundle whose graphs are run from disk. It is what `runtime.inference.stages.Stages` asks for.

    Args:
        folder: the bundle; its manifest says which files it has.
        columns: whether the decoder is its second graph, with expanded weights.
    """

    def __init__(self, folder: Path, columns: bool = False) -> None:
        self._columns = columns
        self.folder, self.manifest = folder, manifest.load(folder)
        self.prompts = Prompts(folder, self.manifest.prompt, self.manifest.tile_tokens)
        self._table = np.load(folder / contract.EMBED_TOKENS, mmap_mode="r")

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        calls = [{contract.PIXEL_VALUES: tile[None]} for tile in tiles]  # attention takes memory for each tile
        return np.concatenate([values[contract.VISION_FEATURES] for values in self.run(contract.VISION_ENCODER, calls)])

    def project(self, features: np.ndarray) -> np.ndarray:
        (values,) = self.run(contract.PROJECTOR, [{contract.VISION_FEATURES: features}])
        return values[contract.IMAGE_EMBEDS]

    def masks(self, codes: np.ndarray) -> np.ndarray:
        (values,) = self.run(contract.MASK_DECODER, [{contract.MASK_CODES: codes}])
        return values[contract.MASKS]

    def answers(
        self, prompts: Sequence[EncodedPrompt], embeds: Sequence[np.ndarray], tokens: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        calls = [call for prompt, rows, ids in zip(prompts, embeds, tokens) for call in self.calls(prompt, [rows], ids)]
        logits = np.concatenate([values[contract.LOGITS][:, 0] for values in self.run(contract.DECODER, calls)])
        return np.split(logits, np.cumsum([len(ids) for ids in tokens])[:-1])

    def vectors(self, prompts: Sequence[EncodedPrompt], embeds: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        calls = [self.calls(*case, np.zeros(1, np.int64))[0] for case in zip(prompts, embeds)]
        for call in calls:
            call[contract.LOGITS_INDICES] = np.arange(call[contract.INPUTS_EMBEDS].shape[1])[None]
        return [values[contract.VECTORS][0] for values in self.run(contract.DECODER, calls)]

    def calls(self, prompt: EncodedPrompt, embeds: Sequence[np.ndarray], tokens: np.ndarray) -> list[Values]:
        """Inputs of the decoder: for a prompt, with empty KV buffers, then for each of `tokens` but the last."""
        recipe = self.manifest.embedding
        row = merge(self._table, prompt.ids, prompt.is_image, embeds, recipe)
        fed = [row, *(embed(self._table, token, recipe)[None] for token in tokens[:-1])]
        capacity = len(row) + len(fed) - 1
        buffers = {
            past.name: np.zeros(past.sized(batch=1, capacity=capacity), past.dtype)
            for past, _ in self.manifest.graphs[contract.DECODER].cache_pairs()
        }
        return [
            {
                contract.INPUTS_EMBEDS: step[None],
                contract.SEQUENCE_LENGTHS: np.array([len(row) + index - 1], np.int32),
                contract.TOTAL_SEQUENCE_LENGTH: np.array(len(row) + index, np.int32),
                contract.LOGITS_INDICES: np.array([[len(step) - 1]]),
                **({} if index else buffers),
            }
            for index, step in enumerate(fed)
        ]

    def run(self, graph: str, calls: list[Values], probe: Probe | None = None) -> list[Values]:
        """The values that a graph computes for the inputs of several calls.

        A decoder goes on where the call before ended, unless a call has KV buffers of its own. A part of the graph
        makes all calls before the next part is loaded. `probe` may add outputs to each part.
        """
        known = [dict(call) for call in calls]
        for part in self.parts(graph):
            if probe is not None:
                probe(part)
            for values, results in zip(known, self.results(graph, part, known, as_written=probe is not None)):
                values.update(results)
        return known

    def parts(self, graph: str, at_once: int | None = None) -> Iterator[ir.Model]:
        """The parts of a graph, each with at most `at_once` bytes of weights; `AT_ONCE` if it is None."""
        load = load_columns if self._columns and graph == contract.DECODER else ir.load
        return split(load(self.folder / f"{graph}.onnx"), at_once or AT_ONCE)

    def results(self, graph: str, part: ir.Model, calls: list[Values], as_written: bool = False) -> Iterator[Values]:
        """What a part of a graph computes for each call's values, without KV buffers, one call after the other."""
        past = {present.name: past.name for past, present in self.manifest.graphs[graph].cache_pairs()}
        session = _session(part, self.folder, as_written)
        inputs, outputs = _names(session.get_inputs()), _names(session.get_outputs())
        buffers: Values = {}
        for values in calls:
            at_hand = buffers | values
            results = dict(zip(outputs, session.run(outputs, {name: at_hand[name] for name in inputs})))
            buffers = {past[name]: results.pop(name) for name in outputs if name in past}
            yield results


def _session(model: ir.Model, folder: Path, as_written: bool) -> ort.InferenceSession:
    options = session_options()
    options.enable_cpu_mem_arena = False  # it keeps what it once took
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if as_written:  # every value stays to be seen
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])


def _names(tensors: Iterable[ort.NodeArg]) -> list[str]:
    return [tensor.name for tensor in tensors]
