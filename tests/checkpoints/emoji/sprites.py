"""Draw the sheet of sprites from Debian's fonts-noto-color-emoji: `python tests/checkpoints/emoji/sprites.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parent.parent))
from emoji_scenes import CELL, COLUMNS, NAMES, SPRITES

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
CHARACTERS = "🍎⚽🍌🚌🦋🚗🥕🐱🐘🐸🎸🏠🍄🐧🐷🍍🍕🚀🌲☂"  #: in the order of `NAMES`


def main() -> None:
    font = ImageFont.truetype(FONT, 109)  # the one size that its bitmaps have
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(NAMES) // COLUMNS) * CELL))
    for index, character in enumerate(CHARACTERS):
        drawn = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(drawn).text((0, 0), character, font=font, embedded_color=True)
        drawn = drawn.crop(drawn.getbbox())
        drawn.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(drawn, (index % COLUMNS * CELL, index // COLUMNS * CELL))
    sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(SPRITES, optimize=True)


if __name__ == "__main__":
    main()
