"""Prompts to token ids and answers back to text, as the manifest describes it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tokenizers import Tokenizer

from ...graphs import BundleError, InputError, contract
from ...graphs.manifest import ChatPrompt, TextPrompt, Vectors
from . import chat_template
from .detokenize import Detokenizer
from .media_texts import MediaTexts

PromptInput: TypeAlias = "str | Sequence[chat_template.Message]"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt for the decoder.

    Attributes:
        ids: (tokens,) of int64, placeholders included.
        is_image: (tokens,) of bool, True where an image embedding replaces the token's.
        counted: (tokens,) of int64, the ids as penalties and other filters count them.
        tiles: the tiles (tiles, 3, height, width) of its images and videos, in the order of their placeholders.
    """

    ids: np.ndarray
    is_image: np.ndarray
    counted: np.ndarray
    tiles: list[np.ndarray]


class Prompts:
    """The tokenizer of a bundle and what stands around a prompt.

    Args:
        folder: the bundle.
        format: what stands around a prompt.
        tile_tokens: how many image embeddings a tile has.
    """

    def __init__(self, folder: Path, format: TextPrompt | ChatPrompt, tile_tokens: int) -> None:
        self.format = format
        self._tile_tokens = tile_tokens
        path = folder / contract.TOKENIZER
        data = _read(path)
        try:
            self.tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path} does not load: {error}; export the bundle again") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.detokenizer = Detokenizer(self.tokenizer, isinstance(format, TextPrompt) and format.clean_up_spaces)
        self._expect_token(format.image, format.image_token_id, "image_token_id")
        if isinstance(format, ChatPrompt):
            if format.video is not None and format.video_token_id is not None:
                self._expect_token(format.video, format.video_token_id, "video_token_id")
            path = folder / contract.CHAT_TEMPLATE
            try:
                source = _read(path).decode("utf-8")
            except UnicodeDecodeError as error:
                raise BundleError(f"{path} is not UTF-8: {error}; export the bundle again") from None
            self._template = chat_template.Template(source, format.special_tokens)

    def encode(
        self,
        prompt: PromptInput,
        images: Sequence[np.ndarray],
        videos: Sequence[np.ndarray] = (),
        grids: Sequence[tuple[int, int]] = (),
        times: Sequence[tuple[Sequence[int], int]] = (),
    ) -> EncodedPrompt:
        """Encode a prompt about images and videos, each given by its tiles (tiles, 3, height, width).

        Args:
            grids: columns and rows of the grid of tiles of each image, 0 and 0 for an image of one tile. They are
                needed where the prompt names tiles.
            times: the second at which each frame of a video is shown, and the video's length in seconds, for each
                video. They are needed where the prompt names times.

        Raises:
            InputError: for more or fewer images than the model takes, or a prompt with placeholders of its own.
        """
        if isinstance(self.format, ChatPrompt):
            return self._chat(prompt, images, videos, grids, times, self.format)
        if videos:
            raise InputError(f"this model takes no videos, {len(videos)} given")
        if not isinstance(prompt, str):
            raise InputError("this model takes no conversations; give the prompt as a text")
        return self._plain(prompt, images, self.format)

    def encode_query(self, text: str, vectors: Vectors) -> EncodedPrompt:
        """Encode a query of a bundle that makes vectors.

        Raises:
            InputError: if it is no text, or has a placeholder in it.
        """
        if not isinstance(text, str):
            raise InputError(f"a query is a text, not {text!r:.80}")
        assert isinstance(self.format, TextPrompt)
        format = dataclasses.replace(
            self.format, before=vectors.query_before, after=vectors.query_after, min_images=0, max_images=0
        )
        return self._plain(text, [], format)

    def _plain(self, prompt: str, images: Sequence[np.ndarray], format: TextPrompt) -> EncodedPrompt:
        if len(images) < format.min_images:
            raise InputError("this model answers about images; give at least one")
        if format.max_images is not None and len(images) > format.max_images:
            raise InputError(f"this model takes at most {format.max_images} image a prompt, {len(images)} given")
        text = self.ids(format.before + (prompt.strip() if format.strip else prompt) + format.after)
        if format.image_token_id in text:
            raise InputError(f"the prompt has {format.image} in it; placeholders are added for the given images")
        ids = self.ids(format.start)
        marks = [False] * len(ids)
        for tiles in images:
            around = self.ids(format.image_start), self.ids(format.image_end)
            tokens = len(tiles) * self._tile_tokens
            ids += [*around[0], *[format.image_token_id] * tokens, *around[1]]
            marks += [False] * len(around[0]) + [True] * tokens + [False] * len(around[1])
        all_ids, is_image = np.array(ids + text, np.int64), np.array(marks + [False] * len(text))
        counted = all_ids.copy()
        if format.counted_from is not None:
            numbers = [np.arange(len(tiles) * self._tile_tokens) for tiles in images]
            counted[is_image] = format.counted_from + np.concatenate([*numbers, np.zeros(0, np.int64)])
        return EncodedPrompt(all_ids, is_image, counted, list(images))

    def _chat(
        self,
        prompt: PromptInput,
        images: Sequence[np.ndarray],
        videos: Sequence[np.ndarray],
        grids: Sequence[tuple[int, int]],
        times: Sequence[tuple[Sequence[int], int]],
        format: ChatPrompt,
    ) -> EncodedPrompt:
        if videos and format.video is None:
            raise InputError(f"this model takes no videos, {len(videos)} given")
        messages = chat_template.conversation(prompt, len(images), len(videos), format.system == "parts")
        text = self._template.render(messages)
        grids = grids or [(0, 0)] * len(images)
        write = MediaTexts(format, self._tile_tokens)
        texts = [write.image(len(image), grid) for image, grid in zip(images, grids, strict=True)]
        waiting = {format.image_mark: zip(images, texts)}
        if format.video is not None:
            times = times or [((), 0)] * len(videos)
            texts = [write.video(len(video), *of_video) for video, of_video in zip(videos, times, strict=True)]
            waiting[format.video] = zip(videos, texts)
        tiles: list[np.ndarray] = []
        # The template chooses where placeholders stand; each takes the next image or video of its kind.
        pieces = re.split(f"({'|'.join(map(re.escape, waiting))})", text)
        for index, piece in enumerate(pieces[1::2]):
            medium, written = next(waiting[piece], (None, ""))
            if medium is None:
                raise InputError(f"the prompt has {piece} in it; placeholders are added for what is given")
            tiles.append(medium)
            pieces[2 * index + 1] = written
        if len(tiles) < len(images) + len(videos):
            raise InputError(
                f"{len(images) + len(videos)} images and videos are given, and the model's chat template writes"
                f" {len(tiles)} of them: move them from messages that it writes without, such as a system's, to the"
                " user's"
            )
        start = [] if text.startswith(format.start) else self.ids(format.start)
        ids = np.array(start + self.ids("".join(pieces)), np.int64)
        placeholders = [token for token in (format.image_token_id, format.video_token_id) if token is not None]
        is_image = np.isin(ids, placeholders)
        if is_image.sum() != sum(map(len, tiles)) * self._tile_tokens:
            raise InputError(f"the prompt has {format.image} in it; placeholders are added for what is given")
        return EncodedPrompt(ids, is_image, ids, tiles)

    def _expect_token(self, token: str, token_id: int, name: str) -> None:
        if self.tokenizer.token_to_id(token) != token_id:
            raise BundleError(
                f"prompt.{name} is {token_id}, {contract.TOKENIZER} has {token!r:.60} as"
                f" {self.tokenizer.token_to_id(token)}; export the bundle again"
            )

    def ids(self, text: str) -> list[int]:
        """The ids of a text, nothing added.

        Raises:
            InputError: if the text has a surrogate, which no tokenizer takes.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text {text!r:.80} has the surrogate {text[error.start]!r} at index {error.start}, a sign of bytes"
                " that are not UTF-8; give text in UTF-8"
            ) from None
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.detokenizer.text(ids)


def _read(path: Path) -> bytes:
    """The bytes of a file of a bundle."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
