"""A LoRA adapter as PEFT saves it, merged into the weights it adapts while they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...graphs import CheckpointError
from ...graphs.transforms.weights import Source
from . import settings
from .safetensors_files import stored_tensors

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
#: settings that add something else than a product of two matrices, with their common names
OTHER_KINDS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "LoRA with biases",
    "fan_in_fan_out": "LoRA on transposed weights",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained single tokens",
    "alora_invocation_tokens": "activated LoRA",
}
PREFIX = "base_model.model."
DOWN = re.compile(r"_A(\.weight)?$")
WAY_OUT = "merge it with PEFT's merge_and_unload, save the model and export that"


@dataclass(frozen=True)
class Merged:
    """A weight and the update that is added to it: scaling * up (out, rank) @ down (rank, in)."""

    base: Source
    up: np.ndarray
    down: np.ndarray
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the weight's axes."""
        return self.base.shape

    @property
    def fits(self) -> bool:
        """Whether the update has the shape of the weight."""
        rows, *columns = self.shape
        return (len(self.up), self.down.shape[1]) == (rows, int(np.prod(columns)))

    def __getitem__(self, index: Any) -> np.ndarray:
        values = self.base[index]
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return values + ((self.up[rows] @ self.down[:, columns]) * self.scaling).reshape(values.shape)


class Adapter:
    """The files of an adapter.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        name: its name in a bundle's manifest.

    Raises:
        CheckpointError: if the folder has no adapter, or one of another kind than LoRA.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder, self.name = folder, name
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder} is no adapter: it has no {CONFIG}; give a folder as PEFT saves it")
        self._config = settings.read(folder / CONFIG)
        kinds = [name for key, name in OTHER_KINDS.items() if self._config.get(key)]
        if self._config.get("peft_type") != "LORA":
            kinds.append(f"peft_type {self._config.get('peft_type')!r}")
        if kinds:
            raise CheckpointError(f"{folder}: {', '.join(kinds)} cannot be merged here, only LoRA; {WAY_OUT}")
        if not (folder / TENSORS).is_file():
            pickle = f" ({PICKLE} is a pickle, which may run code when it is read)"
            note = pickle if (folder / PICKLE).is_file() else ""
            raise CheckpointError(f"{folder} has no {TENSORS}{note}; save it with safe_serialization=True")
        self._tensors = stored_tensors(folder / TENSORS)

    def merge(self, weights: Mapping[str, Source], name_of: Callable[[str], str | None]) -> dict[str, Source]:
        """`weights` with those of the adapter merged into them or instead of them.

        Args:
            weights: the model's weights by name.
            name_of: the name of a weight from its key in a checkpoint of any layout.

        Raises:
            CheckpointError: naming every tensor of the adapter that fits no weight.
        """
        merged, problems = dict(weights), []
        pairs = {key for key in self._tensors if ".lora_" in key}
        for key in sorted(self._tensors.keys() - pairs):  # whole weights, trained or kept beside a pair
            name = name_of(key.removeprefix(PREFIX).replace(".base_layer.", "."))
            if name is None or self._tensors[key].shape != merged[name].shape:
                problems.append(f"{key}: the model has no such weight of shape {self._tensors[key].shape}")
            else:
                merged[name] = self._tensors[key]
        for key in sorted(key for key in pairs if DOWN.search(key)):
            up = DOWN.sub(r"_B\1", key)
            name = name_of(f"{key.removeprefix(PREFIX).partition('.lora_')[0]}.weight")
            pairs -= {key, up}
            if name is None:
                problems.append(f"{key}: the model has no such weight")
            elif up not in self._tensors:
                problems.append(f"{up}: missing")
            elif (update := self._update(key, up, merged[name])).fits:
                merged[name] = update
            else:
                problems.append(f"{key}: makes {len(update.up)} x {update.down.shape[1]}, {name} is {update.shape}")
        problems += [f"{key}: not known" for key in sorted(pairs)]
        if problems:
            raise CheckpointError(
                f"the adapter {self.folder} does not fit the model; {WAY_OUT}:\n"
                + "\n".join(f"  {p}" for p in problems)
            )
        return merged

    def _update(self, down: str, up: str, base: Source) -> Merged:
        """A weight with the update of these two tensors."""
        module = down.removeprefix(PREFIX).partition(".lora_")[0]
        a, b = self._tensors[down][...], self._tensors[up][...]
        scaling = self._scaling(module, len(a))
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        return Merged(base, a.T, b.T, scaling) if "lora_embedding" in down else Merged(base, b, a, scaling)

    def _scaling(self, module: str, rank: int) -> float:
        """The factor of an update: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        alpha, patterns = self._config.number("lora_alpha", 8), self._config.section("alpha_pattern")
        for pattern in patterns:
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = patterns.number(pattern, alpha)
                break
        return alpha / (rank**0.5 if self._config.get("use_rslora") else rank)
