"""`optimum-cli export onnx-vlm`. optimum imports this file wherever it is installed; it imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, RawTextHelpFormatter
from typing import ClassVar

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
TASKS = ("auto", "image-text-to-text")


class OnnxVlmExportCommand(BaseOptimumCLICommand):
    """Does what `onnx-vlm export` does, with the flags that users of optimum know."""

    COMMAND: ClassVar[CommandInfo] = CommandInfo(
        name="onnx-vlm", help="Export vision-language models to ONNX bundles for onnx-vlm."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.formatter_class = RawTextHelpFormatter
        parser.add_argument("-m", "--model", required=True, help="Folder of a checkpoint, or an id on the Hub.")
        parser.add_argument("output", help="Folder to make: the bundle.")
        parser.add_argument("--task", default="auto", choices=TASKS, help="What the model does; there is one task.")
        parser.add_argument("--weight-format", default="fp32", choices=PRECISIONS, help="Precision of the decoder.")
        parser.add_argument(
            "--group-size", type=int, help="Weights that share a scale in int8 and int4: 32, 64 or 128 (default 128)."
        )
        parser.add_argument("--cache_dir", help="Where downloads from the Hub are kept.")
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="Refused: code of a checkpoint is never run."
        )

    def run(self) -> None:
        """Run `onnx-vlm export`. An error ends the command with a sentence, and a status as there."""
        from onnx_vlm.runtime.cli import main

        asked = self.args
        if asked.trust_remote_code:
            self.parser.error("--trust-remote-code: onnx-vlm never runs code of a checkpoint; leave the flag out")
        if asked.cache_dir is not None:
            from huggingface_hub import constants

            constants.HF_HUB_CACHE = asked.cache_dir
        group = () if asked.group_size is None else ("--block-size", str(asked.group_size))
        main(["export", "--precision", asked.weight_format, *group, "--", asked.model, asked.output])


REGISTER_COMMANDS = [(OnnxVlmExportCommand, ExportCommand)]
