"""Draws the image that README and demo ask about, and the answer's boxes: `python tests/docs_pictures.py BUNDLE`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "checkpoints"))
import emoji_scenes
from helpers import REPOSITORY
from onnx_vlm.runtime import draw, load

SEED, PROMPT = emoji_scenes.HELD_OUT + 11270, "detect cat ; car"


def main() -> None:
    image = emoji_scenes.draw(emoji_scenes.scene(SEED), 640)
    image.save(REPOSITORY / "docs" / "emoji.jpg", quality=88)
    answer = load(Path(sys.argv[1])).generate(PROMPT, images=REPOSITORY / "docs" / "emoji.jpg")
    print(answer.text, answer.boxes)
    draw(image, answer.boxes).save(REPOSITORY / "docs" / "boxes.jpg", quality=88)


if __name__ == "__main__":
    main()
