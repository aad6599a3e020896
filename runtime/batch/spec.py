"""What a job is: all that is known of it before it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...graphs import BundleError, InputError
from ...graphs import manifest as manifests
from ..hub.find import find
from ..limits import Limits
from ..model import VLM
from ..options import Options, resolve
from ..providers.load_options import LoadOptions
from .readers import Readers
from .records import FORMAT, TASKS, Recorder, Task
from .rows import Reader
from .worker import Embedding, Worker


@dataclass(frozen=True)
class Spec:
    """How rows are answered. It can be sent to another process.

    Attributes:
        bundle: the folder that an export wrote.
        fetched_from: the id or URL that it was fetched from, so that other machines can fetch it too; None for a folder
            that they see by the same path.
        base: the folder that relative paths of rows start from.
        task: "generate", "score" or "embed".
        prompt, candidates: of rows that have none.
        options: of answers; a row's own go before them.
        columns: by role, the name of its column where that is another.
        carry: columns of the input that are carried along.
        carry_as_text: carry them as text, for results whose columns have one type.
        media_domains: hosts that images and videos may be fetched from.
        where: the provider and its options.
        max_rows: answers, beams and candidates that are computed together.
        threads: how many read images.
        apart: whether each of these has a process to read in. It leaves more of this one's time to the model, and a
            decoder that crashes on an image takes that row alone with it.
    """

    bundle: Path
    base: Path
    task: Task = "generate"
    prompt: str | None = None
    candidates: Sequence[str] = ()
    options: Options = field(default_factory=lambda: Options())
    columns: Mapping[str, str] = field(default_factory=dict)
    carry: Sequence[str] = ()
    carry_as_text: bool = False
    media_domains: Sequence[str] = ()
    where: LoadOptions = field(default_factory=LoadOptions)
    max_rows: int = 8
    threads: int = 2
    apart: bool = False
    fetched_from: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"the task is {self.task!r}; give one of {', '.join(TASKS)}")
        if self.task != "score" and self.candidates:
            raise InputError("candidates are for the task score; give that, or no candidates")
        if self.task == "embed" and (self.options or self.prompt is not None):
            raise InputError("the task embed takes no prompt for all rows and no options of answers; leave them out")
        for name in ("max_rows", "threads"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; give 1 or more")

    def fingerprint(self) -> dict[str, Any]:
        """All that results depend on but the rows.

        Raises:
            BundleError, InputError: if there is no bundle, or an option is invalid.
        """
        manifest = manifests.load(self.bundle)
        if (manifest.kind == "embedding") != (self.task == "embed"):
            fitting = "embed" if manifest.kind == "embedding" else "generate or score"
            raise InputError(f"the task is {self.task}, and the bundle is of the kind {manifest.kind}; give {fitting}")
        settings = resolve(self.options, manifest.generation)
        return {
            "format": FORMAT,
            "bundle": self.checksum(),
            "task": self.task,
            "prompt": self.prompt,
            "candidates": list(self.candidates),
            "options": dataclasses.asdict(settings),
            "columns": dict(self.columns),
            "carry": list(self.carry),
        }

    def checksum(self) -> str:
        """The SHA-256 sum of the manifest, which has those of all files."""
        return manifests.sha256(self.bundle / manifests.FILE_NAME)

    def here(self, checksum: str) -> Spec:
        """The same on another machine, where the bundle is fetched if it was.

        Raises:
            BundleError: if it is another bundle there.
        """
        spec = self if self.fetched_from is None else dataclasses.replace(self, bundle=find(self.fetched_from))
        if spec.checksum() != checksum:
            raise BundleError(
                f"a worker has another bundle as {self.fetched_from or self.bundle} than the job began with; give all"
                " machines the same, or name a revision that does not move"
            )
        return spec

    def reader(self) -> Reader:
        """What reads rows."""
        asks = self.task != "embed"
        return Reader(self.base, self.prompt, self.candidates, self.columns, self._fetcher(), asks)

    def worker(self) -> Worker | Embedding:
        """What answers rows: the bundle is loaded."""
        reader = self.reader()
        recorder = Recorder(self.task, reader, self.carry, self.carry_as_text)
        if self.task == "embed":
            return Embedding(VLM(self.bundle, self.where), reader, recorder)
        with ExitStack() as undo:
            readers = Readers(manifests.load(self.bundle), Limits(), self.threads) if self.apart else None
            if readers is not None:
                undo.callback(readers.close)
            vlm = VLM(self.bundle, self.where)  # while they start
            worker = Worker(vlm, reader, recorder, self.task, self.options, self.max_rows, self.threads, readers)
            undo.pop_all()
        return worker

    def _fetcher(self) -> Callable[[str], bytes] | None:
        if not self.media_domains:
            return None
        try:
            from ..server.errors import APIError
            from ..server.fetch import Fetcher
        except ImportError as error:
            raise InputError(
                f"fetching images needs the packages of the server ({error}); install them:"
                " pip install 'onnx-vlm[serve]'"
            ) from None
        fetcher = Fetcher(self.media_domains, MOST_BYTES)

        def fetch(url: str) -> bytes:
            try:
                return fetcher(url)
            except APIError as error:
                raise InputError(f"{url:.300}: {error}") from None

        return fetch


MOST_BYTES = 1 << 28  #: of an image or a video that is fetched
