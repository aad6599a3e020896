"""The stages of a bundle one by one, to be compared with those of the source model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...graphs.manifest import Manifest
from ..text.prompt import EncodedPrompt, Prompts
from .engine import Engine


class Stages(Protocol):
    """A bundle that can be run stage by stage, loaded or in parts."""

    manifest: Manifest
    prompts: Prompts

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles (tiles, 3, height, width) to vision features (tiles, patches, vision_width)."""

    def project(self, features: np.ndarray) -> np.ndarray:
        """Vision features (tiles, patches, vision_width) to image embeddings (tiles, image_tokens, hidden)."""

    def masks(self, codes: np.ndarray) -> np.ndarray:
        """Codes (masks, codes) to masks (masks, height, width), where the bundle has a decoder of masks."""

    def answers(
        self, prompts: Sequence[EncodedPrompt], embeds: Sequence[np.ndarray], tokens: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """The logits (tokens, vocab) of each prompt: after the prompt with its image embeddings, and after each of its
        `tokens` (tokens,) but the last, run one by one."""

    def vectors(self, prompts: Sequence[EncodedPrompt], embeds: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """The vectors (tokens, width) of each page with its image embeddings, or of each query with none."""


class Loaded:
    """The stages of a loaded bundle, as an answer runs them."""

    def __init__(self, prompts: Prompts, engine: Engine) -> None:
        self.manifest, self.prompts, self._engine = engine.manifest, prompts, engine
        self.encode, self.project, self.masks = self._engine.encode, self._engine.project, self._engine.masks

    def answers(
        self, prompts: Sequence[EncodedPrompt], embeds: Sequence[np.ndarray], tokens: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        return [self._answer(*case) for case in zip(prompts, embeds, tokens)]

    def vectors(self, prompts: Sequence[EncodedPrompt], embeds: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        return self._engine.vectors([self._engine.merge(prompt, [*rows]) for prompt, rows in zip(prompts, embeds)])

    def _answer(self, prompt: EncodedPrompt, embeds: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        first, run = self._engine.start([self._engine.merge(prompt, [embeds])], len(tokens))
        later = (np.asarray(run.step(np.zeros(1, np.int64), tokens[i : i + 1])) for i in range(len(tokens) - 1))
        return np.concatenate([np.asarray(first), *later])
