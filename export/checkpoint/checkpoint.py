"""A checkpoint folder as `save_pretrained` writes it: its configuration files, and its tensors one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel

from ...graphs import CheckpointError, contract
from ...graphs.transforms.weights import Source
from ..tracing.patching import KEY_CONVERSIONS, KEY_RENAMING, require
from . import settings
from .lora import Adapter
from .safetensors_files import stored_tensors
from .settings import Settings

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: The files that transformers reads settings from. All are checked first, even those that only a proof reads.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


class Checkpoint:
    """The files of a checkpoint. Weights and tokenizer are read when they are needed.

    Args:
        folder: the folder of the files.
        name: the checkpoint's name in a bundle's manifest.
        adapter: the LoRA adapter to merge into the weights.

    Raises:
        CheckpointError: if `folder` has no config.json or no weights as safetensors, if a file of settings is no JSON
            object, or if one names Python code of the checkpoint's own.
    """

    def __init__(self, folder: str | Path, name: str = "", adapter: Adapter | None = None) -> None:
        self.folder, self.name, self.adapter = Path(folder), name, adapter
        if not (self.folder / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} is no checkpoint: it has no config.json; give a folder as save_pretrained writes it"
            )
        for name in SETTINGS:
            self.json(name)
        self.config = self.json("config.json")
        self.files = self._files()

    def json(self, name: str) -> Settings:
        """The settings in a file, empty where there is no such file."""
        path = self.folder / name
        return settings.read(path) if path.is_file() else Settings(str(path))

    def processor(self, kind: str) -> Settings:
        """Settings of the "image" or "video" processor: a part of the one file of newer checkpoints, or a file of its
        own in older ones."""
        old = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}[kind]
        return self.json("processor_config.json").section(f"{kind}_processor") or self.json(old)

    def special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens that tokenizer_config.json names, such as `bos_token`."""
        values = self.json("special_tokens_map.json") | self.json("tokenizer_config.json")
        tokens = {name: value for name, value in values.items() if name.endswith("_token")}
        tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
        return {name: value for name, value in tokens.items() if isinstance(value, str)}

    def chat_template(self) -> str | None:
        """The chat template, from the first file that holds one; the one named "default" where there are several.

        Raises:
            CheckpointError: if it is no text.
        """
        path = self.folder / contract.CHAT_TEMPLATE
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path} is not UTF-8: {error}") from None
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            values = self.json(name)
            template = values.get("chat_template")
            if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
                template = next(
                    (entry.get("template") for entry in template if entry.get("name") == "default"), template
                )
            if template and isinstance(template, str):
                return template
            if template:
                values.refuse("chat_template", 'a text, or a list of {"name", "template"} with one named "default"')
        return None

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
        tokenizer_id = self.tokenizer.token_to_id(token)
        if tokenizer_id != token_id:
            raise CheckpointError(f"{contract.TOKENIZER} has {token} as {tokenizer_id}, config.json as {token_id}")

    def _files(self) -> list[Path]:
        names = [SINGLE]
        if not (self.folder / SINGLE).is_file():  # transformers, too, looks for the single file first
            index = self.json(INDEX)
            names = sorted(set(map(_inside, index.section("weight_map").values()))) if index else names
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            pickles = sorted(path.name for path in self.folder.glob("*.bin"))
            also = f" {', '.join(pickles)}: a pickle may run code when it is read;" if pickles else ""
            raise CheckpointError(
                f"{self.folder} lacks weights: {', '.join(missing)}; only safetensors are read (model.safetensors, or"
                f" the files that model.safetensors.index.json names).{also} load the model with transformers where"
                " you trust it, and save it with save_pretrained, which writes safetensors"
            )
        return [self.folder / name for name in names]


def _inside(name: Any) -> str:
    """The name of a file of weights, if it lies in the checkpoint."""
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise CheckpointError(
            f"{INDEX}: weight_map names {name!r:.80}, which is no file of the checkpoint; give names inside its folder"
        )
    return name


def parse(kind: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
    """Read a config.json as transformers' configuration class.

    Raises:
        CheckpointError: if a value of it is invalid.
    """
    try:
        return kind.from_dict(dict(config))
    except Exception as error:  # whatever a configuration class makes of values it did not expect
        raise CheckpointError(f"config.json is no valid {kind.__name__}: {error}") from error


class Weights:
    """The tensors of a checkpoint under the names that `model` gives them, read in slices when they are asked for.

    `model` may have fake weights. Old and new key layouts are told apart by transformers' own renaming rules.

    Raises:
        CheckpointError: naming every tensor that is missing, left over or of another shape than the config asks for.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.names = {id(tensor): name for name, tensor in _tensors(model).items()}
        self._known = model.state_dict(keep_vars=True)
        self._renamings = require(KEY_CONVERSIONS)(model)
        self._rename = require(KEY_RENAMING)
        self._prefix = model.base_model_prefix
        shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        buffers = {name for name, _ in model.named_buffers()}
        self.sources: dict[str, Source] = {}
        problems, extra = [], []
        for path in checkpoint.files:
            for key, tensor in stored_tensors(path).items():
                name = self.name_of(key)
                if name is None:
                    extra.append(key)
                    continue
                if name in shapes and tensor.shape != shapes[name]:
                    problems.append(f"{key}: shape {tensor.shape}, the config asks for {shapes[name]}")
                self.sources[name] = tensor
        problems += [f"{name}: missing" for name in shapes if name not in self.sources]
        problems += [f"{key}: the config has no place for it" for key in extra if not _computed(key, buffers)]
        if problems:
            raise CheckpointError(
                f"the weights in {checkpoint.folder} do not fit its config.json:\n"
                + "\n".join(f"  {problem}" for problem in problems)
            )

        if checkpoint.adapter is not None:
            self.sources = checkpoint.adapter.merge(self.sources, self.name_of)

    def name_of(self, key: str) -> str | None:
        """The model's name for the tensor that a checkpoint of any layout calls `key`, None if it has no such tensor.

        A tied tensor has several names; this returns the first.
        """
        name, _ = self._rename(key, self._renamings, [], self._prefix, self._known)
        return self.names[id(self._known[name])] if name in self._known else None


def _tensors(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _computed(key: str, buffers: set[str]) -> bool:
    """Whether the model computes an extra tensor itself: older versions saved some of those."""
    last = key.rpartition(".")[2]
    return any(name.rpartition(".")[2] == last for name in buffers)
