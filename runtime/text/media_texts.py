"""What a conversation has for an image or a video: placeholders, and the texts around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ...graphs.manifest import ChatPrompt


@dataclass(frozen=True)
class MediaTexts:
    """Writes images and videos as `format` has them; a tile has `tile_tokens` placeholders."""

    format: ChatPrompt
    tile_tokens: int

    def image(self, tiles: int, grid: tuple[int, int] = (0, 0)) -> str:
        """The text of an image of so many tiles, in a grid of columns and rows where tiles have names."""
        placeholders, names = self.format.image * self.tile_tokens, self.format.tiles
        if self.format.crops is not None and tiles > 1:
            crops, one = self.format.crops, self.image(1)
            return crops.before + one + crops.between + crops.separator.join([one] * (tiles - 1))
        if names is None:
            return self.format.image_start + placeholders * tiles + self.format.image_end
        columns, rows = grid
        assert tiles == 1 + columns * rows, f"{tiles} tiles, a grid of {columns} x {rows}"
        lines = [
            "".join(names.tile.format(row=row, column=column) + placeholders for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        ]
        cut = "".join(line + names.row_end for line in lines) + names.grid_end if lines else ""
        return cut + names.whole + placeholders + names.end

    def video(self, frames: int, seconds: Sequence[int], duration: int) -> str:
        """The text of a video whose frames are shown at these seconds, and which lasts so many."""
        texts = self.format.frames
        if texts is None:
            return (self.format.video or "") * frames * self.tile_tokens
        assert len(seconds) == frames, f"{len(seconds)} times of {frames} frames"
        frame = self.image(1)
        shown = (texts.frame.format(time=f"{at // 60:02d}:{at % 60:02d}") + frame for at in seconds)
        intro = texts.intro.format(frames=texts.numbers[frames - 1], duration=timedelta(seconds=duration))
        return intro + "".join(shown) + texts.end
