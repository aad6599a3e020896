"""The command `chat`."""

from __future__ import annotations

import sys

from ...graphs import VLMError
from . import flags
from .console import print_error


def chat(
    bundle: flags.Bundle,
    *,
    image: flags.Images = None,
    video: flags.Video = None,
    max_new_tokens: flags.MaxNewTokens = None,
    where: flags.Where,
    embedding_folder: flags.EmbeddingFolder = None,
) -> None:
    """Answer questions about images or a video: each line of standard input is one.

    Where the model knows turns, a question may refer to those before it. A question that cannot be answered is
    named on standard error, and the next one is read.
    """
    vlm = flags.load(bundle, where, embedding_folder)
    conversation = vlm.chat(image, video)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 is refused, not the session
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        question = sys.stdin.readline()
        if not question:
            break
        if not question.strip():
            continue
        try:
            text = flags.check_text(question.rstrip("\r\n"))
            for piece in conversation.stream(text, max_new_tokens=max_new_tokens):
                print(piece, end="", flush=True)
        except VLMError as error:
            print_error(str(error))
        print(flush=True)
