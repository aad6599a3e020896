"""Checkpoints by their id on the Hugging Face Hub, downloaded once into its cache."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ...graphs import CheckpointError
from .checkpoint import Checkpoint
from .lora import Adapter

#: The files that an export reads. Weights as pickles are never fetched: they may run code.
FILES = ("*.json", "*.safetensors", "*.jinja")


def local(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: `checkpoint` itself, or the download of the Hub's checkpoint with that id.

    Raises:
        CheckpointError: if an id is invalid or cannot be downloaded, with the way out.
    """
    folder = Path(checkpoint)
    name = str(checkpoint)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return folder
    missing = f"there is no folder {name}, and"
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except HFValidationError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{missing} {name} is no id on the Hub ({reason}); give a folder as save_pretrained writes it, or an id"
            " like google/paligemma2-3b-pt-224"
        ) from None
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
    """Open a checkpoint, given by its folder or id, and the adapter to merge into it, given likewise."""
    merged = Adapter(local(adapter), _name(adapter)) if adapter is not None else None
    return Checkpoint(local(checkpoint), _name(checkpoint), merged)


def _name(checkpoint: str | Path) -> str:
    """What a checkpoint is called: its id on the Hub, or the name of its folder."""
    folder = Path(checkpoint)
    return folder.resolve().name if folder.exists() else str(checkpoint)
