"""Limits of one call, checked before memory is taken and work is done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..graphs import InputError
from ..graphs.manifest import GenerationDefaults
from .memory import free_memory

MAX_PIXELS = (1 << 30) // 12  #: 256 MiB of RGB: of more Pillow warns as of a decompression bomb


@dataclass(frozen=True)
class Limits:
    """Limits of a loaded model. A call beyond one of the first seven is refused with an InputError that names it.

    Attributes:
        max_prompt_tokens: tokens of a prompt, images included; None for as many as the model has positions.
        max_new_tokens: tokens of an answer; None as for a prompt.
        max_images: images and videos of a prompt; None for as many as fit into `max_prompt_tokens`.
        max_pixels: pixels of an image or a frame, known before it is decoded. Pillow opens no file of more than
            178,956,970, whatever is allowed here.
        max_video_frames: frames of a video file, which are decoded one after another. The default is an hour at 60
            frames a second.
        max_rows: answers, beams or candidates that are computed together: those of all prompts of a call.
        max_memory: bytes of the KV cache of a call, of its prefill and of its logits; None for the memory that is free
            to this process when the call begins.
        vision_memory: bytes that the vision encoder may take. As many images are encoded together as these bytes are
            enough for, at least a tile at a time.
        embedding_memory: bytes of image embeddings that are kept, so that the same image is not encoded again; 0 for
            none. The least recently used go first.
    """

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_images: int | None = None
    max_pixels: int = MAX_PIXELS
    max_video_frames: int = 60 * 3600
    max_rows: int = 4096
    max_memory: int | None = None
    vision_memory: int = 1 << 30
    embedding_memory: int = 1 << 28

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, optional = getattr(self, field.name), field.default is None
            least = 0 if field.name == "embedding_memory" else 1
            if not ((value is None and optional) or (type(value) is int and value >= least)):
                raise InputError(f"{field.name} is {value!r}; give {least} or more" + (", or None" if optional else ""))

    def check_images(self, count: int) -> None:
        """Raise an InputError for more images and videos than a prompt may have."""
        if self.max_images is not None and count > self.max_images:
            raise InputError(
                f"{count} images and videos are given, the limit max_images is {self.max_images}; give fewer"
            )

    def check_image_tokens(self, tokens: int, generation: GenerationDefaults) -> None:
        """Raise an InputError for more image embeddings than a prompt has room for."""
        most, allowed = generation.max_positions, f"the model has {generation.max_positions} positions"
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < most:
            most, allowed = self.max_prompt_tokens, f"the limit max_prompt_tokens is {self.max_prompt_tokens}"
        if tokens > most:
            raise InputError(
                f"the images and videos are {tokens} tokens or more of the prompt, {allowed}; give fewer of them"
            )

    def check_memory(self, needed: int, rows: int, tokens: int) -> None:
        """Raise an InputError if a call of `rows` rows of `tokens` tokens, which takes `needed` bytes, is too large."""
        remedy = "a row is an answer, a beam or a candidate: ask for fewer of them at once"
        if rows > self.max_rows:
            raise InputError(f"the call has {rows} rows, the limit max_rows is {self.max_rows}; {remedy}")
        allowed = free_memory() if self.max_memory is None else self.max_memory
        if allowed is not None and needed > allowed:
            name = "free to this process are" if self.max_memory is None else "the limit max_memory is"
            raise InputError(
                f"a KV cache of {rows} rows of {tokens} tokens, the prompts' prefill and the logits take {needed}"
                f" bytes, {name} {allowed}; {remedy}, or for fewer tokens"
            )

    def room(self, prompt_tokens: int, max_new_tokens: int | None, generation: GenerationDefaults) -> int:
        """The number of tokens that may follow the longest of the prompts: the number asked for, or else the default.

        Raises:
            InputError: if the prompt is too long, or more is asked for than there may be.
        """
        if self.max_prompt_tokens is not None and prompt_tokens > self.max_prompt_tokens:
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, images included, the limit max_prompt_tokens is"
                f" {self.max_prompt_tokens}; shorten it"
            )
        limit = generation.max_positions if self.max_new_tokens is None else self.max_new_tokens
        if self.max_new_tokens is not None and (max_new_tokens or 0) > limit:
            raise InputError(f"max_new_tokens is {max_new_tokens}, the limit is {limit}; ask for fewer")
        room = generation.max_positions - prompt_tokens
        if generation.max_length is not None and max_new_tokens is None and prompt_tokens >= generation.max_length:
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, images included, and by the model's generation_config.json"
                f" prompt and answer have at most {generation.max_length} together; give max_new_tokens"
            )
        if room < (max_new_tokens or 1):
            raise InputError(
                f"the prompt has {prompt_tokens} tokens, images included, and the model {generation.max_positions}"
                f" positions, so {max(0, room)} are left for an answer of {max_new_tokens or 'at least 1'};"
                " shorten the prompt or ask for fewer tokens"
            )
        default = generation.max_new_tokens
        if generation.max_length is not None:
            default = generation.max_length - prompt_tokens
        return max_new_tokens or min(room, limit, default)
