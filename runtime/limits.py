"""What one call may ask for, checked before memory is taken and work is done."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from ..graphs import InputError
from ..graphs.manifest import Generation

MAX_PIXELS = (1 << 30) // 12  #: 256 MiB of RGB: of more Pillow warns as of a decompression bomb


@dataclass(frozen=True)
class Limits:
    """Limits of a loaded model. A call beyond one of the first five is refused with an InputError that names it.

    Attributes:
        max_prompt_tokens: tokens of a prompt, pictures included; None for as many as the model has positions.
        max_new_tokens: tokens of an answer; None as for a prompt.
        max_images: pictures and videos of a prompt; None for any number.
        max_pixels: pixels of a picture or a frame, known before it is decoded. Pillow opens no file of more than
            178,956,970, whatever is allowed here.
        max_memory: bytes of the KV cache of a call and of its prefill; None for the memory that the machine has.
        vision_memory: bytes that the vision encoder may take. Pictures are encoded together as far as they are enough,
            at least a tile at a time.
        embedding_memory: bytes of image embeddings that are kept, so that the same picture is not encoded again; 0 for
            none. The least recently used go first.
    """

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_images: int | None = None
    max_pixels: int = MAX_PIXELS
    max_memory: int | None = None
    vision_memory: int = 1 << 30
    embedding_memory: int = 1 << 28

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, optional = getattr(self, field.name), field.default is None
            least = 0 if field.name == "embedding_memory" else 1
            if not ((value is None and optional) or (type(value) is int and value >= least)):
                raise InputError(f"{field.name} is {value!r}; give {least} or more" + (", or None" if optional else ""))

    def check_images(self, number: int) -> None:
        """Raise an InputError for more pictures and videos than a prompt may have."""
        if self.max_images is not None and number > self.max_images:
            raise InputError(
                f"{number} pictures and videos are given, the limit max_images is {self.max_images}; give fewer"
            )

    def check_memory(self, needed: int, rows: int, tokens: int) -> None:
        """Raise an InputError if the `needed` bytes of a call with `rows` rows of `tokens` tokens are too many."""
        allowed = _memory() if self.max_memory is None else self.max_memory
        if needed > allowed:
            name = "this machine has" if self.max_memory is None else "the limit max_memory is"
            raise InputError(
                f"a KV cache of {rows} rows of {tokens} tokens and the prompts' prefill take {needed} bytes, {name}"
                f" {allowed}; a row is an answer, a beam or a candidate: ask for fewer of them at once, or for fewer"
                " tokens"
            )

    def room(self, prompt_tokens: int, max_new_tokens: int | None, generation: Generation) -> int:
        """How many tokens may be made after the longest of the prompts: what is asked for, or else the default.

        Raises:
            InputError: if the prompt is too long, or more is asked for than there may be.
        """
        if self.max_prompt_tokens is not None and prompt_tokens > self.max_prompt_tokens:
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, pictures included, the limit max_prompt_tokens is"
                f" {self.max_prompt_tokens}; shorten it"
            )
        limit = generation.max_positions if self.max_new_tokens is None else self.max_new_tokens
        if self.max_new_tokens is not None and (max_new_tokens or 0) > limit:
            raise InputError(f"max_new_tokens is {max_new_tokens}, the limit is {limit}; ask for fewer")
        room = generation.max_positions - prompt_tokens
        if generation.max_length is not None and max_new_tokens is None and prompt_tokens >= generation.max_length:
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, pictures included, and by the model's generation_config.json"
                f" prompt and answer have at most {generation.max_length} together; give max_new_tokens"
            )
        if room < (max_new_tokens or 1):
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, pictures included, and the model {generation.max_positions}"
                f" positions, so {max(0, room)} are left for an answer of {max_new_tokens or 'at least 1'};"
                " shorten the prompt or ask for fewer tokens"
            )
        default = generation.max_new_tokens
        if generation.max_length is not None:
            default = generation.max_length - prompt_tokens
        return max_new_tokens or min(room, limit, default)


def _memory() -> int:
    """Bytes of memory that the machine has; as good as endless where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
