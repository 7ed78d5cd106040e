"""The commands as functions, with the same defaults and errors: `from worldlake import label`.

Every function takes a lake as a `Lake`, or as a uri. Errors are `WorldlakeError`s: one line with the remedy.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import Refused
from lake.timer import after
from worldlake.extras import needed_by
from worldlake.unread import warnings

if TYPE_CHECKING:
    import pyarrow as pa

    from labeling.human_labels import LabeledCounts
    from labeling.run import Summary as LabelSummary
    from labeling.settings import RunSettings, SamplingSettings
    from lake.catalog import IngestCounts
    from lake.tables import Lake
    from models.settings import ModelSettings, WorldSettings
    from training.run import Summary as TrainSummary
    from training.settings import TrainingSettings
    from worldlake.evaluation import Outcome

log = logging.getLogger("worldlake")

_FOREIGN = "builtin knows the sample world of the demo only: for your footage, use --model hf:OWNER/NAME"

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

    How many videos could not be read, now or before, and the query that says why go to the logger ``worldlake`` as
    warnings.

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
        done = Ingested(
            *ingest_labeled(
                target, sources, format, options, lambda counts: progress(counts.triples + counts.failed, vars(counts))
            )
        )
    else:
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
        done = Ingested(counts)
    for line in warnings(done.videos, target.uri):
        log.warning("%s", line)
    return done


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
    stop: threading.Event | None = None,
    progress: Progress = _ignore,
    advise: bool = True,
) -> LabelSummary:
    """Label every pending video of a lake, and commit the outcome as it comes.

    Ctrl-C and SIGTERM drain: what was begun is finished and committed. A second one raises KeyboardInterrupt. The same
    call resumes. Ray runs on this machine, or on the cluster of ``RAY_ADDRESS``, and stays for the next call. Warnings,
    and a line when work begins, go to the logger ``worldlake``.

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
        stop: set it to drain. Then signals are left alone, as they are outside the main thread.
        progress: called with how many videos are done, and with counts by name; ``videos_pending`` are left.
        advise: warn when ``builtin`` accepted no pair, as it does of footage that it does not know.

    Raises:
        Refused: the model, the policy or `where` cannot be used, or another run of the labeler is alive.
        Stalled: there was no progress for ``run.stall_timeout`` seconds.
        Superseded: another run took over.
        Unavailable: the store does not answer.
    """
    from labeling.labeler import LabelerSettings, resolve_labeler
    from labeling.policy import load_policy
    from labeling.run import label as run_labeler
    from labeling.settings import RunSettings, SamplingSettings

    target = _lake(lake)
    target.storage.check(target.uri)
    settings = _dynamics(model)
    rules = load_policy(policy or ("builtin" if settings.name == "builtin" else "default"))
    run = run or RunSettings()
    labeler = resolve_labeler(LabelerSettings(model=settings, sampling=sampling or SamplingSettings()), _device(run))
    with _stopping(stop, max_hours) as stopping:
        summary = run_labeler(
            target,
            labeler,
            rules,
            run,
            where=where,
            limit=limit,
            retry_failed=retry_failed,
            take_over=take_over,
            stop=stopping,
            progress=lambda counts: progress(counts["videos_finished"] + counts["videos_failed"], counts),
            warn=log.warning,
            inform=log.info,
        )
    if advise and settings.name == "builtin" and summary.counts["rejected"] and not summary.counts["accepted"]:
        log.warning(_FOREIGN)
    return summary


@contextmanager
def _stopping(stop: threading.Event | None, max_hours: float | None) -> Iterator[threading.Event]:
    """The caller's event, or one that signals set; the time limit sets either."""
    from cluster.signals import draining, interrupt

    if stop is None:
        with draining(max_hours, interrupt) as own:
            yield own
    else:
        with after(None if max_hours is None else max_hours * 3600, stop.set):
            yield stop


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
        Unavailable: the store does not answer.
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
    stop: threading.Event | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda line: None,
) -> TrainSummary:
    """Train a dynamics or a world model on the triples of a lake, or resume the run of this name.

    Args:
        settings: `DynamicsTraining` or `WorldTraining`.
        run: name of the run. Default: one that the same settings always have.
        out: where checkpoints and the model go. Default: ``LAKE/models``.
        max_hours: stop with a checkpoint after this many hours.
        stop: set it to drain. Then signals are left alone, as they are outside the main thread.
        progress: called with every line of the training log.

    Raises:
        Refused: no triple is chosen, a pinned version is gone, or the cluster is too small.
        Superseded: another process took over the run.
        Unavailable: the store does not answer.
    """
    with needed_by("train"):
        from training.run import train as run_training

    with _stopping(stop, max_hours) as stopping:
        return run_training(
            _lake(lake), settings, run_id=run, out=out, stop=stopping, progress=progress, warn=log.warning
        )


def evaluate(
    lake: Lake | str,
    model: ModelSettings | str = "builtin",
    *,
    world: WorldSettings | str | None = None,
    n: int | None = None,
    split: str = "test",
    datasets: Sequence[str] = (),
    labelers: Sequence[str] = (),
    where: str | None = None,
    limit: int = 1000,
    seed: int = 0,
    referee: ModelSettings | str | None = None,
    oracle: bool = False,
    features: Sequence[str] = (),
    judge: str | None = None,
    judge_model: str | None = None,
    report: Path | None = None,
) -> Outcome:
    """Evaluate a model on pairs whose action is known. The figures also go to the table `runs`.

    Args:
        model: the dynamics model to evaluate, or, beside `world`, the one that chooses among candidates.
        world: a world model to evaluate in its place.
        n: candidates per pair that the world model draws. Default: 8.
        split: train, validation, test or all.
        datasets: names of data sets. Default: all.
        labelers: whose labels are the truth. Default: people's (``human:...``).
        where: SQL condition on the columns of `triples` and ``class_label``.
        limit: evaluate at most this many pairs, always the same ones.
        seed: of random actions, and of what the world model draws.
        referee: another dynamics model, to name what the predictions show.
        oracle: the videos are of the sample world: let its oracle say what is shown.
        features: CLIP or DINO models to compare images by, ``hf:<folder>``.
        judge: endpoint of a judge, ``https://host/v1`` (key: ``OPENAI_API_KEY``).
        judge_model: name of the judge at its endpoint. Default: ``gpt-4o``.
        report: HTML file to write.

    Raises:
        Refused: no pair is chosen, a model cannot be used, or an argument is for a world model and there is none.
        Unavailable: the store does not answer.
    """
    if world is None:
        _refuse_for_a_world(
            n=n is not None,
            referee=referee is not None,
            oracle=oracle,
            features=bool(features),
            judge=judge is not None,
            judge_model=judge_model is not None,
        )
    with needed_by("evaluate"):
        from worldlake.evaluation import WorldOptions, evaluate_dynamics, evaluate_world
        from worldlake.evaluation_pairs import Choice

    model = _dynamics(model)
    choice = Choice.of(split, datasets, labelers, where, limit, seed, model.batch_size)
    if world is None:
        return evaluate_dynamics(_lake(lake), choice, model, report)
    options = WorldOptions(
        _world(world),
        model,
        8 if n is None else n,
        referee=_dynamics(referee) if referee is not None else None,
        oracle=oracle,
        features=tuple(features),
        judge=judge,
        judge_model=judge_model or "gpt-4o",
    )
    return evaluate_world(_lake(lake), choice, options, report)


def _refuse_for_a_world(**given: bool) -> None:
    if ignored := [name for name, is_given in given.items() if is_given]:
        raise Refused(f"{', '.join(ignored)}: only for evaluating a world model: pass world, or omit")


def _dynamics(model: ModelSettings | str) -> ModelSettings:
    from models.settings import ModelSettings

    return ModelSettings(name=model) if isinstance(model, str) else model


def _world(world: WorldSettings | str) -> WorldSettings:
    from models.settings import WorldSettings

    return WorldSettings(name=world) if isinstance(world, str) else world


def _lake(lake: Lake | str) -> Lake:
    from lake.tables import Lake

    return Lake(lake) if isinstance(lake, str) else lake
