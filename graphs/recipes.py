"""Recipes: how a runtime prepares images and prompts, embeds tokens, ends answers and reads boxes.

Each class describes one behaviour and becomes an object in manifest.json. Where a field takes one of several classes,
`kind` says which; it is written in the manifest, and never passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .sampling import Sampling


@dataclass(frozen=True)
class TextPrompt:
    """A prompt that is one text, with its images before it.

    The prompt's token ids are, in this order: the ids of `start`; for each image the ids of `image_start`, its
    placeholders and the ids of `image_end`; the ids of `before`, the prompt and `after`, tokenized as one text.

    Attributes:
        image: the placeholder, with the id `image_token_id`. An image has one for each of its image embeddings.
        strip: remove white space around the prompt.
        clean_up_spaces: remove the spaces before punctuation and contractions from an answer.
        min_images, max_images: how many images a prompt may have; no upper limit if `max_images` is null.
        counted_from: changes which ids the options see that look at the ids of a prompt. They see `image_token_id` at
            each placeholder if it is null; if not, this id at the first placeholder of an image and the ids after it
            at the others.
    """

    kind: Literal["plain"] = field(default="plain", init=False)
    start: str
    image_start: str
    image: str
    image_token_id: int
    image_end: str
    before: str
    after: str
    strip: bool
    clean_up_spaces: bool
    min_images: int
    max_images: int | None
    counted_from: int | None = None


@dataclass(frozen=True)
class TileNames:
    """What stands around the placeholders of an image's tiles in a prompt.

    `tile`, formatted with `row` and `column`, which count from 1, stands before the placeholders of a tile, `row_end`
    after each row of tiles and `grid_end` after the last. Then come `whole`, the placeholders of the whole image, and
    `end`. An image of one tile has only these.
    """

    tile: str
    row_end: str
    grid_end: str
    whole: str
    end: str

    def problems(self, image: str) -> Iterator[str]:
        """A sentence for each text that cannot be used around the placeholder `image`."""
        yield from _unusable(vars(self), image)
        if not re.fullmatch(r"[^{}]*\{row\}[^{}]*\{column\}[^{}]*", self.tile):
            yield f"tile: {self.tile!r:.60} does not take a row and a column, as '<{{row}}, {{column}}>' does"


@dataclass(frozen=True)
class FrameTexts:
    """What stands around the placeholders of a video's frames in a prompt.

    First `intro`, formatted with `frames`, which is an entry of `numbers`, and with `duration` (h:mm:ss). Then, for
    each frame, `frame`, formatted with `time` (mm:ss), and what a prompt has for an image of one tile. Last `end`.

    Attributes:
        numbers: one, two, and so on, in words.
    """

    intro: str
    frame: str
    end: str
    numbers: tuple[str, ...]

    def problems(self, image: str) -> Iterator[str]:
        """A sentence for each text that cannot be used around the placeholder `image`."""
        texts = {name: text for name, text in vars(self).items() if name != "numbers"}
        yield from _unusable(texts | {f"numbers.{at}": word for at, word in enumerate(self.numbers)}, image)
        if not re.fullmatch(r"[^{}]*\{frames\}[^{}]*\{duration\}[^{}]*", self.intro):
            yield f"intro: {self.intro!r:.60} does not take frames and a duration, as '{{frames}} of {{duration}}' does"
        if not re.fullmatch(r"[^{}]*\{time\}[^{}]*", self.frame):
            yield f"frame: {self.frame!r:.60} does not take a time, as 'at {{time}}' does"


@dataclass(frozen=True)
class CropTexts:
    """What stands around the tiles of an image that is also cut into parts.

    First `before` and the whole image, then `between` and the parts, with `separator` between two of them. The whole
    image and each part are written as an image of one tile is.
    """

    before: str
    between: str
    separator: str

    def problems(self, image: str) -> Iterator[str]:
        """A sentence for each text that cannot be used around the placeholder `image`."""
        yield from _unusable(vars(self), image)


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt that is a conversation, as `chat_template.jinja` writes it with `special_tokens` as its variables.

    The template writes `image` or `video` once for an image or video; it is repeated there for each image embedding.
    `video` and `video_token_id` are null where the model takes no videos.

    Attributes:
        frames: what stands around the placeholders of a video's frames, which are those of images; the template writes
            `video` once for a video, and `video_token_id` is null. If this is null, nothing stands around them.
        tiles: what stands around the placeholders of an image's tiles; null if nothing does.
        crops: what stands around the tiles of an image that is cut into parts; null if nothing does.
        system: what the template takes as the content of a system's message: a text, or a list of parts.
        written: what the template writes for an image in place of `image`; null if it writes `image` itself.
        image_start, image_end: what stands around the placeholders of an image.
        start: a text whose ids stand before those of the conversation, unless the template writes it first itself.
    """

    kind: Literal["chat"] = field(default="chat", init=False)
    special_tokens: dict[str, str]
    image: str
    image_token_id: int
    video: str | None = None
    video_token_id: int | None = None
    tiles: TileNames | None = None
    frames: FrameTexts | None = None
    crops: CropTexts | None = None
    system: Literal["text", "parts"] = "text"
    written: str | None = None
    image_start: str = ""
    image_end: str = ""
    start: str = ""

    @property
    def image_mark(self) -> str:
        """What the template writes for an image."""
        return self.written or self.image

    def problems(self) -> Iterator[str]:
        """A sentence for each text around placeholders that cannot be used."""
        for name, texts in (("tiles", self.tiles), ("frames", self.frames), ("crops", self.crops)):
            if texts is not None:
                yield from (f"{name}.{problem}" for problem in texts.problems(self.image))


def _unusable(texts: dict[str, str], image: str) -> Iterator[str]:
    for name, text in texts.items():
        if image in text or len(text) > 256:
            yield f"{name}: {text!r:.60} has the placeholder in it, or more than 256 characters"


@dataclass(frozen=True)
class Embedding:
    """Rows of `embed_tokens.npy` are multiplied by `scale`; image embeddings are inserted afterwards, unscaled.

    Where `ahead` is true, a token of an image sees those of its image that follow it, and the decoder takes one number
    more for each token, behind its embedding: how many these are; 0 for a token of text.
    """

    scale: float
    ahead: bool = False


@dataclass(frozen=True)
class Vectors:
    """A bundle of the kind "embedding": it makes a vector for each token of a page or a query, and answers nothing.

    A page is one image, and its prompt is the text `page`. A query is a text, without an image: its ids are those of
    `query_before`, the text and `query_after`, tokenized as one text.
    """

    page: str
    query_before: str
    query_after: str


@dataclass(frozen=True)
class GenerationDefaults:
    """How answers end and how tokens are chosen where the caller does not say.

    Attributes:
        eos_token_ids: the ids that end an answer.
        max_new_tokens: the most tokens of an answer, unless the caller sets a limit.
        max_positions: the most tokens of prompt and answer together that the model has positions for.
        defaults: the options of sampling.
        max_length: the most tokens of prompt and answer together, unless the caller sets a limit; null for none.
    """

    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    max_positions: int
    defaults: Sampling
    max_length: int | None = None


@dataclass(frozen=True)
class LocationTokens:
    """Boxes in an answer: four tokens (`token` formatted with a bin) in the order of `edges`, then a label.

    A coordinate is bin / `bins` of the image's height or width. `separator` stands between boxes. The `codes` tokens of
    a mask may stand before the label; each is `code` formatted with an integer below `code_values`.
    """

    kind: Literal["locations"] = field(default="locations", init=False)
    token: str
    code: str
    codes: int
    code_values: int
    bins: int
    edges: tuple[str, str, str, str]
    separator: str


@dataclass(frozen=True)
class PatchTokens:
    """Boxes in prompt and answer: a phrase between the tags `phrase`, then pairs of tokens between the tags `object`.

    A pair (`token` formatted with the index of a patch) names the upper left and the lower right patch of a box on a
    grid of `side` x `side` patches, counted row by row. `separator` stands between pairs.
    """

    kind: Literal["patches"] = field(default="patches", init=False)
    token: str
    side: int
    phrase: tuple[str, str]
    object: tuple[str, str]
    separator: str
