"""The models of a server: loaded one after another beside it, each with a scheduler of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...graphs import Manifest, contract
from ...graphs.manifest import ChatPrompt, LocationTokens, PatchTokens, TextPrompt
from ..model import VLM
from ..scheduling import Scheduler
from .answers import TokenTexts
from .embeddings.turns import Turns
from .errors import APIError


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        scheduler: of a model that answers.
        turns: of a model that makes vectors.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    vlm: VLM
    scheduler: Scheduler | None
    turns: Turns | None
    texts: TokenTexts
    created: int

    def entry(self) -> dict[str, Any]:
        """The model in `GET /v1/models`."""
        about = facts(self.vlm.manifest) | {"provider": self.vlm.provider}
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "onnx-vlm",
            "onnx_vlm": about,
        }


def facts(manifest: Manifest) -> dict[str, Any]:
    """What a bundle can do, by the behaviours that its manifest describes."""
    prompt, grounding = manifest.prompt, manifest.grounding
    masks = contract.MASK_DECODER in manifest.graphs
    images = (prompt.min_images, prompt.max_images) if isinstance(prompt, TextPrompt) else (0, None)
    answers = manifest.kind == "generation"
    tasks = {
        "chat": isinstance(prompt, ChatPrompt),
        "answer": answers,
        "caption": answers,
        "embed": not answers,
        "detect": isinstance(grounding, LocationTokens),
        "segment": isinstance(grounding, LocationTokens) and masks,
        "ground": isinstance(grounding, PatchTokens),
    }
    return {
        "tasks": [task for task, is_done in tasks.items() if is_done],
        "takes": {
            "images": images,
            "videos": manifest.video is not None,
            "conversation": isinstance(prompt, ChatPrompt),
            "bboxes": isinstance(grounding, PatchTokens),
        },
        "boxes": None if grounding is None else grounding.kind,
        "masks": masks,
        "max_positions": manifest.generation.max_positions,
        "precision": manifest.precision[contract.DECODER],
    }


class Models:
    """The models by name, and what state the server is in.

    Args:
        folders: their bundles by name.
        load: loads a bundle.
        max_rows, max_queue: of each scheduler.
    """

    def __init__(
        self, folders: Mapping[str, Path], load: Callable[[Path], VLM], max_rows: int = 8, max_queue: int = 64
    ) -> None:
        self._folders, self._load = folders, load
        self._max_rows, self._max_queue = max_rows, max_queue
        self._loaded: dict[str, Model] = {}
        self._is_ready = threading.Event()
        self.draining = False
        self.error: BaseException | None = None  #: why loading has failed

    @property
    def status(self) -> Literal["ok", "loading", "draining"]:
        """What `GET /health` says."""
        if self.draining:
            return "draining"
        return "ok" if self._is_ready.is_set() else "loading"

    def load(self) -> None:
        """Load all models; `error` has the reason if one does not load."""
        try:
            for name, folder in self._folders.items():
                vlm = self._load(folder)
                answers = vlm.manifest.kind == "generation"
                scheduler = Scheduler(vlm, max_rows=self._max_rows, max_queue=self._max_queue) if answers else None
                turns = None if answers else Turns(self._max_queue)
                texts = TokenTexts(vlm.pipeline.prompts.tokenizer, vlm.manifest.generation.eos_token_ids)
                self._loaded[name] = Model(name, vlm, scheduler, turns, texts, int(time.time()))
            self._is_ready.set()
        except BaseException as error:
            self.error = error

    def __iter__(self):
        return iter(list(self._loaded.values()))

    def get(self, name: str | None) -> Model:
        """The model of a request.

        Raises:
            APIError: if there is none of this name.
        """
        known = ", ".join(self._folders)
        if name is None and len(self._folders) > 1:
            raise APIError(400, f"model is missing; there are {known}", "model")
        name = next(iter(self._folders)) if name is None else name
        model = self._loaded.get(name)
        if model is None and name in self._folders:
            raise APIError(503, f"{name} is loading; try again", code="loading")
        if model is None:
            raise APIError(404, f"there is no model {name!r:.80}; there are {known}", "model", "model_not_found")
        return model

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """End the schedulers."""
        for model in self:
            if model.scheduler is not None:
                model.scheduler.close(drain=drain, timeout=timeout)
