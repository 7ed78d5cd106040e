"""The commands as functions, with the same defaults and errors: `from worldlake import label`.

Every function takes a lake as a `Lake`, or as a uri. Errors are those of `lake.errors`: one line with the remedy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import Refused
from lake.tables import Lake
from worldlake.extras import needed_by

if TYPE_CHECKING:
    import pyarrow as pa

    from labeling.human_labels import LabeledCounts
    from labeling.run import Summary as LabelSummary
    from labeling.settings import RunSettings, SamplingSettings
    from lake.catalog import IngestCounts
    from models.settings import ModelSettings
    from training.run import Summary as TrainSummary
    from training.settings import TrainingSettings
    from worldlake.evaluation import Outcome, WorldOptions
    from worldlake.evaluation_pairs import Choice

# What a function needs is imported when it runs: torch and Ray take seconds, and a query needs neither.

Progress = Callable[[int, dict[str, Any]], None]
"""Called with how many are done, and with counts by name."""


def _ignore(done: int, counts: dict[str, Any]) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Ingested:
    """Result of an ingest: videos, and rows that people labeled if the format has any."""

    videos: IngestCounts
    rows: LabeledCounts | None = None


def ingest(
    lake: Lake | str,
    sources: Sequence[str] | str,
    *,
    dataset: str | None = None,
    format: str = "auto",
    split: str | None = None,
    image_size: int = 256,
    retry_failed: bool = False,
    forgotten: bool = False,
    progress: Progress = _ignore,
) -> Ingested:
    """Catalog the videos of folders, files and ``s3://bucket/prefix`` in the table `videos`, which is made if need be.

    Args:
        dataset: name of the data set. Default: taken from the path.
        format: how paths are read, or a data set of labeled pairs; see ``worldlake ingest --help``.
        split: train, validation or test for all. Default: by path, else 90/5/5 by hash.
        image_size: side in pixels of the stored images of labeled pairs.
        retry_failed: try again what failed before.
        forgotten: also take in what ``worldlake forget`` deleted.

    Raises:
        Refused: an unknown format or split, or a source that cannot be read or that holds no video.
        Unavailable: the store does not answer.
    """
    from lake.catalog import ingest as catalog
    from lake.layouts import find_mapping

    target = _lake(lake)
    sources = [sources] if isinstance(sources, str) else list(sources)
    mapping = find_mapping(format)
    if mapping and mapping.is_labeled:
        from labeling.human_labels import LabeledOptions, ingest_labeled

        options = LabeledOptions(dataset, split, image_size, retry_failed, forgotten)
        return Ingested(
            *ingest_labeled(
                target, sources, format, options, lambda counts: progress(counts.triples + counts.failed, vars(counts))
            )
        )
    counts = catalog(
        target,
        sources,
        dataset=dataset,
        layout=format,
        split=split,
        retry_failed=retry_failed,
        bring_back=forgotten,
        on_progress=lambda counts: progress(counts.listed, vars(counts)),
    )
    return Ingested(counts)


def label(
    lake: Lake | str,
    *,
    model: ModelSettings | str = "builtin",
    sampling: SamplingSettings | None = None,
    policy: str | None = None,
    run: RunSettings | None = None,
    where: str | None = None,
    limit: int | None = None,
    max_hours: float | None = None,
    retry_failed: bool = False,
    take_over: bool = False,
    progress: Progress = _ignore,
    warn: Callable[..., None] = lambda message, **_: None,
) -> LabelSummary:
    """Label every pending video of a lake, and commit the outcome as it comes.

    Ctrl-C and SIGTERM drain: what was begun is finished and committed. The same call resumes.

    Args:
        model: settings of a dynamics model, or its name.
        sampling: how videos become frame pairs. Default: the paper's.
        policy: YAML file of thresholds, or ``builtin`` or ``default``. Default: by model.
        run: how the cluster is used.
        where: SQL condition on the table `videos`.
        limit: stop after this many videos.
        max_hours: stop gracefully after this many hours.
        retry_failed: also try again what failed.
        take_over: end a live run of the same labeler first.

    Raises:
        Refused: the model, the policy or `where` cannot be used, or another run of the labeler is alive.
        Superseded: another run took over.
    """
    from cluster.signals import draining
    from labeling.labeler import LabelerSettings, resolve_labeler
    from labeling.policy import load_policy
    from labeling.run import label as run_labeler
    from labeling.settings import RunSettings, SamplingSettings
    from models.settings import ModelSettings

    target = _lake(lake)
    target.storage.check(target.uri)
    settings = ModelSettings(name=model) if isinstance(model, str) else model
    rules = load_policy(policy or ("builtin" if settings.name == "builtin" else "default"))
    run = run or RunSettings()
    labeler = resolve_labeler(LabelerSettings(model=settings, sampling=sampling or SamplingSettings()), _device(run))
    with draining(max_hours) as stop:
        return run_labeler(
            target,
            labeler,
            rules,
            run,
            where=where,
            limit=limit,
            retry_failed=retry_failed,
            take_over=take_over,
            stop=stop,
            progress=lambda counts: progress(counts["videos_finished"] + counts["videos_failed"], counts),
            warn=warn,
        )


def _device(run: RunSettings) -> str | None:
    """Where the labels of a run are made; None: here, wherever torch finds fit."""
    if not os.environ.get("RAY_ADDRESS"):
        for option, label in (("--decode-on", run.decode_on), ("--label-on", run.label_on)):
            if label:
                raise Refused(f"{option} chooses among the nodes of a cluster: set RAY_ADDRESS to one, or leave it out")
        return None
    from cluster.connect import start_ray
    from labeling.pipeline import workers

    start_ray()
    # Refuses labels that no node has: without its GPUs a model would be another labeler.
    pool = workers(run.decode_workers, run.label_workers, run.worker_cpus, run.decode_on, run.label_on)
    return "cuda" if pool.label_gpus else "cpu"


def query(lake: Lake | str, sql: str) -> pa.Table:
    """Return the result of one read-only SELECT over the tables of a lake, in memory.

    There is a view ``triples_<first 8 digits>`` for every labeler; ``current`` is the labeler that finished last.

    Raises:
        Refused: it is not one SELECT, or it does not run.
    """
    from lake.sql import query as stream

    with stream(_lake(lake), sql) as result:
        return result.read_all()


def train(
    lake: Lake | str,
    settings: TrainingSettings,
    *,
    run: str | None = None,
    out: str | None = None,
    max_hours: float | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda line: None,
    warn: Callable[[str], None] = lambda message: None,
) -> TrainSummary:
    """Train a dynamics or a world model on the triples of a lake, or resume the run of this name.

    Args:
        settings: `DynamicsTraining` or `WorldTraining`.
        run: name of the run. Default: one that the same settings always have.
        out: where checkpoints and the model go. Default: ``LAKE/models``.
        max_hours: stop with a checkpoint after this many hours.

    Raises:
        Refused: no triple is chosen, a pinned version is gone, or the cluster is too small.
        Superseded: another process took over the run.
    """
    from cluster.signals import draining

    with needed_by("train"):
        from training.run import train as run_training

    with draining(max_hours) as stop:
        return run_training(_lake(lake), settings, run=run, out=out, stop=stop, progress=progress, warn=warn)


def evaluate(
    lake: Lake | str,
    what: ModelSettings | WorldOptions | str = "builtin",
    choice: Choice | None = None,
    *,
    report: Path | None = None,
) -> Outcome:
    """Evaluate a model on pairs whose action is known. The figures also go to the table `runs`.

    Args:
        what: a dynamics model (settings or a name), or the options of a world model.
        choice: which pairs. Default: up to 1,000 of the split test that people labeled.
        report: HTML file to write.

    Raises:
        Refused: no pair is chosen, or a model cannot be used.
    """
    from models.settings import ModelSettings

    with needed_by("evaluate"):
        from worldlake.evaluation import evaluate_dynamics, evaluate_world
        from worldlake.evaluation_pairs import Choice

    choice = choice or Choice.of("test", None, None, None, 1000, 0, 16)
    if isinstance(what, str):
        what = ModelSettings(name=what)
    if isinstance(what, ModelSettings):
        return evaluate_dynamics(_lake(lake), choice, what, report)
    return evaluate_world(_lake(lake), choice, what, report)


def _lake(lake: Lake | str) -> Lake:
    return Lake(lake) if isinstance(lake, str) else lake
