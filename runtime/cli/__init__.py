"""The command `onnx-vlm`: a shell over the Python functions, one file a command.

Standard output gets answers, standard error everything else.
"""

from __future__ import annotations

from . import bench, chat, doctor, export, generate, inspect, score, serve, verify, warmup
from .console import app, main
from .flags import expand
from .jobs import batch, embed
from .publish import push, triton

for command in (
    export.export,
    generate.generate,
    chat.chat,
    batch.batch,
    embed.embed,
    score.score,
    serve.serve,
    inspect.inspect,
    verify.verify,
    push.push,
    triton.triton,
    bench.bench,
    doctor.doctor,
    warmup.warmup,
):
    app.command()(expand(command))

__all__ = ["app", "main"]
