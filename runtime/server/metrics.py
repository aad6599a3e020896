"""Metrics for Prometheus: counted as requests go by, and read off the schedulers when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..results import Generation
from ..scheduling import Piece
from .models import Models

#: Bounds of histograms in seconds.
UNTIL_FIRST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
BETWEEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)

#: Members of `scheduling.State`: the name and the help of the metric of each.
GAUGES = {
    "queued": ("queued_requests", "Requests that wait."),
    "running": ("running_requests", "Requests that are answered."),
    "rows": ("rows", "Answers, beams and candidates computed together."),
    "kv_bytes": ("kv_bytes", "Bytes of the KV buffer."),
    "kv_used_bytes": ("kv_used_bytes", "Bytes of the KV buffer that hold tokens."),
    "prefix_bytes": ("prefix_bytes", "Bytes of earlier prompts' KV that are kept."),
}
COUNTERS = {
    "image_hits": ("image_cache_hits", "Images whose embeddings were known."),
    "image_misses": ("image_cache_misses", "Images that were encoded."),
    "prefix_hits": ("prefix_cache_hits", "Prompts whose beginning was known."),
    "prefix_misses": ("prefix_cache_misses", "Prompts whose beginning was not known."),
    "prefix_tokens": ("prefix_cache_tokens", "Tokens of prompts that were not computed again."),
    "tokens": ("scheduler_tokens", "Tokens that were decoded."),
    "steps": ("scheduler_steps", "Steps of decoding."),
}


class Metrics:
    """All metrics of a server."""

    def __init__(self, models: Models) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "onnx_vlm_requests",
            "Requests that have ended; status 499: the client left.",
            ["path", "status"],
            registry=self._registry,
        )
        self._until_first = Histogram(
            "onnx_vlm_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ["model"],
            buckets=UNTIL_FIRST,
            registry=self._registry,
        )
        self._between = Histogram(
            "onnx_vlm_time_between_tokens_seconds",
            "From one token of an answer to the next.",
            ["model"],
            buckets=BETWEEN,
            registry=self._registry,
        )
        self._prompt = Counter("onnx_vlm_prompt_tokens", "Tokens of prompts.", ["model"], registry=self._registry)
        self._answer = Counter("onnx_vlm_answer_tokens", "Tokens of answers.", ["model"], registry=self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Schedulers(models))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def ended(self, answer: Generation, model: str) -> None:
        """Count the tokens of an answer."""
        self._prompt.labels(model).inc(answer.prompt_tokens)
        for choice in (answer, *answer.alternatives):
            self._answer.labels(model).inc(len(choice.token_ids))

    def embedded(self, tokens: int, model: str) -> None:
        """Count the tokens of pages and queries."""
        self._prompt.labels(model).inc(tokens)

    def watch(self, model: str, arrived: float) -> Watch:
        """A watch for the pieces of one request that has arrived at `arrived`, a value of `time.perf_counter`."""
        return Watch(self._until_first.labels(model), self._between.labels(model), arrived)


class Watch:
    """Measures when the tokens of one request come."""

    def __init__(self, until_first: Histogram, between: Histogram, arrived: float) -> None:
        self._until_first, self._between, self._arrived = until_first, between, arrived
        self._last: dict[int, float] = {}

    def see(self, piece: Piece) -> None:
        """A piece has come."""
        if not piece.token_ids:
            return
        now = time.perf_counter()
        if not self._last:
            self._until_first.observe(now - self._arrived)
        if piece.index in self._last:
            # tokens that came together share the time since the one before them
            seconds = (now - self._last[piece.index]) / len(piece.token_ids)
            for _ in piece.token_ids:
                self._between.observe(seconds)
        self._last[piece.index] = now


class _Schedulers:
    """Reads the state of the schedulers."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """A metric for each member of the states."""
        states = {model.name: model.scheduler.state() for model in self._models if model.scheduler is not None}
        for kind, names in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for member, (name, help) in names.items():
                metric = kind(f"onnx_vlm_{name}", help, labels=["model"])
                for model, state in states.items():
                    metric.add_metric([model], getattr(state, member))
                yield metric
