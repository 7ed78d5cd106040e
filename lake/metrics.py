"""Metrics of worldlake, by name. docs/how-to/observability.md says what to do with them.

Where Ray runs they are metrics of `ray.util.metrics`, which the agent of each node gives to Prometheus with `ray_`
before the name; anywhere else they are nothing. Seconds are counters, not histograms: Ray puts the sum of a histogram
together from the middles of its buckets. A gauge has to be set again every few seconds, or Ray forgets it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

REFRESH_S = 5.0
"""Ray forgets a gauge that was not set for twenty seconds."""


@dataclass(frozen=True)
class Metric:
    """A metric and how to feed it. `name` is that in Prometheus, but for `ray_`."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    about: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    def record(self, value: float, **labels: str) -> None:
        """Add to a counter, set a gauge, or observe. Never raises, and is nothing where this process has no Ray."""
        # Found where it is loaded, not imported: a lake is also read where Ray is not even installed.
        ray = sys.modules.get("ray")
        if ray is None or (self.kind == "counter" and value <= 0):
            return
        # Whatever is wrong with Ray, a metric must not fail a run.
        with suppress(Exception):
            if ray.is_initialized():
                made, feed = _made(self)
                getattr(made, feed)(value, tags=labels)

    @contextmanager
    def timed(self, **labels: str) -> Iterator[None]:
        """Record the seconds that the block takes, also when it raises."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.record(time.perf_counter() - begun, **labels)


@cache
def _made(metric: Metric) -> tuple[Any, str]:
    """Ray's own object for a metric, and the method that feeds it."""
    metrics = import_module("ray.util.metrics")
    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.about, metric.labels), "inc"
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.about, metric.labels), "set"
    return metrics.Histogram(metric.name, metric.about, list(metric.boundaries), metric.labels), "observe"


PAIRS = Metric(
    "counter",
    "worldlake_pairs_total",
    "Frame pairs of labeling runs: sampled, labeled (repeats included), accepted, rejected, failed (each once)",
    ("outcome",),
)
VIDEOS = Metric("counter", "worldlake_videos_total", "Videos of labeling runs: finished, failed", ("outcome",))
STAGE_SECONDS = Metric(
    "counter",
    "worldlake_stage_seconds_total",
    "Seconds that workers spent in a stage (fetch, sample, annotate, verify, write), in labeling runs (label) and the "
    "service (live)",
    ("stage", "source"),
)
STAGE_WORKERS = Metric(
    "gauge", "worldlake_stage_workers", "Processes of a labeling run: sample, annotate, write", ("stage",)
)
MODEL_SECONDS = Metric(
    "counter",
    "worldlake_model_seconds_total",
    "Seconds for which dynamics models were labeling and scoring, in labeling runs (label) and the service (live)",
    ("source",),
)
TOKENS = Metric(
    "counter",
    "worldlake_tokens_total",
    "Tokens that dynamics models wrote, in labeling runs (label) and the service (live)",
    ("source",),
)
QUEUE = Metric(
    "gauge",
    "worldlake_queue_depth",
    "What waits in a labeling run: videos not finished, files and rows before the next commit",
    ("queue",),
)
COMMIT_SECONDS = Metric(
    "histogram",
    "worldlake_commit_seconds",
    "Time of a commit into all its tables, by a labeling run or the service (live)",
    ("source",),
    (0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
COMMIT_RETRIES = Metric(
    "counter", "worldlake_commit_retries_total", "Commits of a table that were tried again", ("source",)
)
RUN_IDLE = Metric(
    "gauge", "worldlake_run_idle_seconds", "Seconds since the counts of a run changed, by kind of run", ("kind",)
)
S3_RETRIES = Metric(
    "counter",
    "worldlake_s3_retries_total",
    "Reads and uploads repeated because the store was away; not those of boto3, Arrow and deltalake by themselves",
)
S3_ERRORS = Metric(
    "counter", "worldlake_s3_errors_total", "Reads and uploads given up, by what the store or boto3 said", ("error",)
)
TRAIN_PAIRS = Metric("counter", "worldlake_train_pairs_total", "Pairs that a training has stepped through", ("task",))
TRAIN_TOKENS = Metric(
    "counter",
    "worldlake_train_tokens_total",
    "Tokens that went through a model in training, padding included",
    ("task",),
)
TRAIN_WAIT_SECONDS = Metric(
    "counter",
    "worldlake_train_wait_seconds_total",
    "Seconds for which the first worker of a training waited for pairs",
    ("task",),
)

ALL = tuple(value for value in globals().values() if isinstance(value, Metric))
