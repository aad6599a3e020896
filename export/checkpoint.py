"""A checkpoint folder as `save_pretrained` writes it: its configuration files, and its tensors one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

from ..graphs import CheckpointError, contract

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """Files of a checkpoint. Nothing is read before it is asked for.

    Args:
        folder: where they are.
        name: what people call it.

    Raises:
        CheckpointError: if `folder` has no config.json or no weights as safetensors.
    """

    def __init__(self, folder: str | Path, name: str = "") -> None:
        self.folder, self.name = Path(folder), name
        if not (self.folder / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} is no checkpoint: it has no config.json; give a folder as save_pretrained writes it"
            )
        self.config = self.json("config.json")
        self.files = self._files()

    def json(self, *names: str) -> dict[str, Any]:
        """The first of these files that exists, {} if none does."""
        for name in names:
            path = self.folder / name
            if path.is_file():
                try:
                    return json.loads(path.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise CheckpointError(f"{path} is not JSON: {error}") from None
        return {}

    def processor(self, kind: str) -> dict[str, Any]:
        """Settings of the "image" or "video" processor: a part of the one file of newer checkpoints, or a file of its
        own in older ones."""
        old = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}[kind]
        return self.json("processor_config.json").get(f"{kind}_processor") or self.json(old)

    def special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens that tokenizer_config.json names, such as `bos_token`."""
        settings = self.json("special_tokens_map.json") | self.json("tokenizer_config.json")
        tokens = {name: value for name, value in settings.items() if name.endswith("_token")}
        tokens = {name: value["content"] if isinstance(value, dict) else value for name, value in tokens.items()}
        return {name: value for name, value in tokens.items() if isinstance(value, str)}

    def chat_template(self) -> str | None:
        """The chat template, from whichever file holds it."""
        path = self.folder / contract.CHAT_TEMPLATE
        if path.is_file():
            return path.read_text(encoding="utf-8")
        files = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
        return next((found for name in files if (found := self.json(name).get("chat_template"))), None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of tokenizer.json."""
        path = self.folder / contract.TOKENIZER
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder} has no {path.name}; save it there with AutoProcessor's save_pretrained"
            )
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} does not load: {error}") from None

    def expect_token(self, token: str, token_id: int) -> None:
        """Raise a CheckpointError if the tokenizer has another id for a token than config.json."""
        found = self.tokenizer.token_to_id(token)
        if found != token_id:
            raise CheckpointError(f"{contract.TOKENIZER} has {token} as {found}, config.json as {token_id}")

    def _files(self) -> list[Path]:
        index = self.json(INDEX)
        names = sorted(set(index["weight_map"].values())) if index else [SINGLE]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks weights: {', '.join(missing)}; only safetensors are read"
                " (model.safetensors, or the files that model.safetensors.index.json names)"
            )
        return [self.folder / name for name in names]


def parse(kind: type[ConfigT], config: dict[str, Any]) -> ConfigT:
    """A config.json as transformers' configuration class, or a CheckpointError that says what is wrong in it."""
    try:
        return kind.from_dict(config)
    except Exception as error:  # whatever a configuration class makes of values it did not expect
        raise CheckpointError(f"config.json is no valid {kind.__name__}: {error}") from error


class Weights:
    """The tensors of a checkpoint under the names that `model` gives them, each read when it is asked for.

    `model` may have fake weights. Old and new key layouts are told apart by transformers' own renaming rules.

    Raises:
        CheckpointError: naming every tensor that is missing, left over or of another shape than the config asks for.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.names = {id(tensor): name for name, tensor in _tensors(model).items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        known = model.state_dict(keep_vars=True)
        renamings = get_model_conversion_mapping(model)
        self._places: dict[str, tuple[Path, str]] = {}
        problems, extra = [], []
        for path in checkpoint.files:
            for key, shape in _shapes(path).items():
                name, _ = rename_source_key(key, renamings, [], model.base_model_prefix, known)
                if name not in known:
                    extra.append(key)
                    continue
                name = self.names[id(known[name])]  # a tied weight goes by its first name
                if name in wanted and shape != wanted[name]:
                    problems.append(f"{key}: shape {shape}, the config asks for {wanted[name]}")
                self._places[name] = (path, key)
        problems += [f"{name}: missing" for name in wanted if name not in self._places]
        buffers = {name for name, _ in model.named_buffers()}
        problems += [f"{key}: the config has no place for it" for key in extra if not _computed(key, buffers)]
        if problems:
            raise CheckpointError(
                f"the weights in {checkpoint.folder} do not fit its config.json:\n"
                + "\n".join(f"  {problem}" for problem in problems)
            )

    def read(self, name: str) -> np.ndarray:
        """The tensor that `model` calls `name`, as float32 if it is of a floating type."""
        path, key = self._places[name]
        with safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None


def _tensors(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _computed(key: str, buffers: set[str]) -> bool:
    """Whether an extra tensor is one that the model computes itself: older versions saved some of those."""
    last = key.rpartition(".")[2]
    return any(name.rpartition(".")[2] == last for name in buffers)
