"""Checkpoints by their id on the Hugging Face Hub, fetched once and kept in its cache."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ...graphs import CheckpointError
from .checkpoint import Checkpoint
from .lora import Adapter

#: What an export reads. Weights as pickles are never fetched: they may run code.
FILES = ("*.json", "*.safetensors", "*.jinja")


def local(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: the one named, or the one that the Hub has under that id.

    Raises:
        CheckpointError: if an id cannot be fetched, with the way out.
    """
    folder = Path(checkpoint)
    name = str(checkpoint)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return folder
    missing = f"there is no folder {name}, and"
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except GatedRepoError:
        raise CheckpointError(
            f"{missing} {name} on the Hub is gated: accept its licence at https://huggingface.co/{name}, then log in"
            " with `hf auth login` or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{missing} the Hub has no {name}, or it is private: check the name, or log in with `hf auth login`"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{missing} {name} could not be fetched from the Hub ({str(error).splitlines()[0]}); fetch it where there"
            f" is a network with `hf download {name}` and give the folder"
        ) from None


def open_checkpoint(checkpoint: str | Path, adapter: str | Path | None = None) -> Checkpoint:
    """A checkpoint by its folder or id, with an adapter, if any, by its own."""
    merged = Adapter(local(adapter), Path(adapter).resolve().name) if adapter is not None else None
    return Checkpoint(local(checkpoint), Path(checkpoint).resolve().name, merged)
