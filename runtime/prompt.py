"""Prompts to token ids and answers back to text, as the manifest describes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..graphs import BundleError, InputError
from ..graphs.manifest import Prompt


class Prompts:
    """The tokenizer of a bundle and what stands around a prompt."""

    def __init__(self, tokenizer_file: Path, format: Prompt) -> None:
        self.format = format
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{tokenizer_file} does not load: {error}; export the bundle again") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, prompt: str, images: int) -> np.ndarray:
        """Token ids (tokens,) of int64 of a prompt about that many pictures, placeholders included."""
        if self.format.needs_image and not images:
            raise InputError("this model answers about pictures; give at least one")
        text = self.tokenizer.encode(self.format.before + prompt + self.format.after, add_special_tokens=False).ids
        if self.format.image_token_id in text:
            raise InputError(f"the prompt has {self.format.image} in it; placeholders are added for the pictures given")
        return np.array([self.format.image_token_id] * (images * self.format.image_tokens) + text, np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
