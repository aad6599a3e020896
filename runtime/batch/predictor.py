"""A class for the batches of other engines, such as `map_batches` of Ray Data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ...graphs import InputError
from ..hub.find import find
from ..options import Options
from ..providers.load_options import LoadOptions
from .packages import pyarrow
from .records import Task, schema
from .spec import Spec

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


class Predictor:
    """Answers batches of rows with a bundle, which is loaded here. Each row is answered as by `VLM.generate` alone.

    A row that fails has its error in the column `error`.

    Args:
        bundle: the folder that an export wrote, an id on the Hub, or a URL that fsspec opens, such as s3://BUCKET/NAME.
            What is elsewhere is fetched once a machine.
        prompt, candidates: of rows that have none.
        task: "generate", "score" or "embed".
        columns: by role (`prompt`, `image`, `images`, `video`, an option, ...), the name of its column where that is
            another.
        carry: columns of a batch that are carried along.
        base: the folder that relative paths of images start from.
        provider, threads, provider_options: as for `load`.
        media_domains: hosts that images may be fetched from.
        max_rows: rows that are answered together.
        readers: threads that read images.
        options: of answers, as for `VLM.generate`; a row's own go before them.

    Raises:
        BundleError, InputError, ProviderError: as `load`, and for an invalid option.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        prompt: str | None = None,
        *,
        task: Task = "generate",
        candidates: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
        carry: Sequence[str] = (),
        base: str | os.PathLike[str] = ".",
        provider: str = "auto",
        threads: int | None = None,
        provider_options: Mapping[str, Any] | None = None,
        media_domains: Sequence[str] = (),
        max_rows: int = 8,
        readers: int = 2,
        **options: Unpack[Options],
    ) -> None:
        spec = Spec(
            bundle=find(bundle),
            base=Path(base),
            task=task,
            prompt=prompt,
            candidates=tuple(candidates),
            options=options,
            columns=columns or {},
            media_domains=media_domains,
            where=LoadOptions(provider, threads, provider_options or {}),
            max_rows=max_rows,
            threads=readers,
        )
        self._arrow = pyarrow("pyarrow", "a batch of results")
        self._schema, self._carry = schema(task, (), None), tuple(carry)
        if taken := set(self._carry) & set(self._schema.names):
            raise InputError(f"the column {min(taken)!r} cannot be carried along: the results have one of that name")
        self._reader, self._worker = spec.reader(), spec.worker()

    def __call__(self, batch: Mapping[str, Sequence[Any]] | pa.Table) -> pa.Table:
        """The results of a batch, in its order: the columns that `onnx-vlm batch` writes, and those carried along.

        Args:
            batch: columns by name, or a table of pyarrow.
        """
        names = batch.column_names if hasattr(batch, "column_names") else list(batch)
        if missing := [name for name in self._carry if name not in names]:
            raise InputError(f"the batch has no column {missing[0]!r} to carry along; it has {', '.join(names)}")
        if hasattr(batch, "to_pylist"):
            cells = batch.to_pylist()
        else:
            cells = [dict(zip(batch, row)) for row in zip(*batch.values())]
        rows = list(self._reader.rows(cells))
        records = {id(row): record for row, record in self._worker.answer(rows)}
        table = self._arrow.Table.from_pylist([records[id(row)] for row in rows], self._schema)
        for name in self._carry:
            column = batch[name] if hasattr(batch, "column_names") else self._arrow.array(list(batch[name]))
            table = table.append_column(name, column)
        return table


@dataclass(frozen=True)
class ProcessorConfig:
    """How `build_processor` runs a bundle on Ray Data.

    Attributes:
        bundle: as for `Predictor`.
        predictor: further arguments of `Predictor`.
        batch_size: rows that an actor gets at once; several times `max_rows`, so that few wait for a batch's end.
        concurrency: how many actors, or the least and the most of them.
        num_cpus, num_gpus: of an actor.
    """

    bundle: str
    predictor: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    concurrency: int | tuple[int, int] = 1
    num_cpus: float | None = None
    num_gpus: float | None = None


def build_processor(
    config: ProcessorConfig,
    preprocess: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    postprocess: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[Dataset], Dataset]:
    """A function from a dataset of Ray Data to one of answers, in the shape of `ray.data.llm.build_processor`.

    Args:
        preprocess: makes of a row one with `prompt`, `image`, ....
        postprocess: makes of a row with the results what stands in the new dataset.
    """

    def process(dataset: Dataset) -> Dataset:
        if preprocess is not None:
            dataset = dataset.map(preprocess)
        from ray.data import ActorPoolStrategy

        fewest, most = (config.concurrency,) * 2 if isinstance(config.concurrency, int) else config.concurrency
        dataset = dataset.map_batches(
            Predictor,
            fn_constructor_kwargs={"bundle": config.bundle, **config.predictor},
            batch_size=config.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=fewest, max_size=most),
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
        )
        return dataset if postprocess is None else dataset.map(postprocess)

    return process
