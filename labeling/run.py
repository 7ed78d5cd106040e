"""A labeling run: the driver that feeds the pipeline, commits its output during the run, and keeps the counts."""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.connect import start_ray
from labeling.accounting import Accounts, Report
from labeling.labeler import Labeler
from labeling.pending import list_work, why_no_work
from labeling.pipeline import Workers, decisions, nodes_with, workers
from labeling.policy import Policy
from labeling.settings import RunSettings
from labeling.stop_flag import Stop
from labeling.stream import WORK
from lake.commits import Committer
from lake.errors import Fenced, Refused, Stalled, Unavailable, WorldlakeError
from lake.failures import Failure
from lake.forget import complete
from lake.metrics import PAIRS, QUEUE, REFRESH_S, STAGE_WORKERS, VIDEOS
from lake.runs import Run, new_run_id, refuse_second_run
from lake.tables import DataFile, Lake, now, to_table
from lake.text import counted

log = logging.getLogger(__name__)

# Ray replaces what a dead worker had in hand; what is missing all the same is queued again this often in a run.
_ROUNDS = 3


@dataclass
class Summary:
    """Summary of a run. `status` is `finished`, `drained` (asked to stop) or `nothing to do`, and `why` says why.

    `pending` videos were asked for and have neither finished nor failed: what a drained run leaves for the next one.
    """

    run_id: str
    labeler_id: str
    policy_id: str
    status: str
    counts: dict[str, int]
    seconds: float
    pending: int = 0
    why: str = ""

    def text(self) -> str:
        """The summary as a user reads it."""
        if self.status == "nothing to do":
            return f"nothing to do: {self.why}"
        counts = self.counts
        pairs = counts["accepted"] + counts["rejected"]
        left = f"; {counted(self.pending, 'video')} pending: run the same command again" if self.pending else ""
        none, spans = counts["videos_without_pairs"], counts["spans_failed"]
        without = f" ({none:,} without a frame pair; why: `note` in `progress`)" if none else ""
        lost = f"; {counted(spans, 'span')} of video could not be decoded; why: `failures`" if spans else ""
        return (
            f"run {self.run_id} {self.status} in {self.seconds:.1f} s ({pairs / self.seconds:.1f} pairs/s), labeler "
            f"{self.labeler_id}: {counted(counts['videos_finished'], 'video')} finished{without}, "
            f"{counts['videos_failed']:,} failed; {counted(counts['accepted'], 'pair')} accepted, "
            f"{counts['rejected']:,} rejected, {counts['failed']:,} failed{lost}{left}"
        )


Progress = Callable[[dict[str, int]], None]


def label(
    lake: Lake,
    labeler: Labeler,
    policy: Policy,
    settings: RunSettings,
    *,
    where: str | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
    take_over: bool = False,
    stop: threading.Event,
    progress: Progress = lambda counts: None,
    warn: Callable[..., None] = lambda message, **_: None,
    inform: Callable[..., None] = lambda message, **_: None,
) -> Summary:
    """Label every pending video of a lake under a labeler, and commit the outcome as it comes.

    Set `stop` to drain: what was begun is finished and committed, the rest stays pending. Ray is
    started, or connected to, only when there is work. `warn` is called as a logger's `warning` is, with `extra`, and
    `inform` as its `info`. The counts that `progress` gets have a key of their own for `Summary.pending`,
    `videos_pending`.

    Raises:
        Refused: another run of the labeler is alive, another policy is active, `where` is wrong, or the lake has to be
            upgraded.
        ModelRefused: the model does not load.
        Superseded: another run took over.
    """
    # Before Ray starts, which takes seconds.
    lake.writable("runs")
    refuse_other_policy(lake, labeler.id, policy.id)
    list_again = partial(list_work, lake, labeler.id, where=where, limit=limit, retry_failed=retry_failed)
    run_id = new_run_id()
    warn = partial(warn, extra={"run_id": run_id})
    summary = Summary(run_id, labeler.id, policy.id, "nothing to do", Accounts().counts, 0.0)
    summary.pending = len(list_again())
    if not summary.pending:
        summary.why = why_no_work(lake, labeler.id, where=where)
        return summary
    if not take_over:
        refuse_second_run(lake, labeler.id, stop)
    if not stop.is_set():
        inform(
            f"labeling {counted(summary.pending, 'video')} with {labeler.settings.model.name}: starting Ray and "
            "loading the model takes 10 seconds or more",
            extra={"run_id": run_id},
        )
        start_ray()
    config = {"labeler": labeler.identity, "policy": policy.model_dump(mode="json"), "run": settings.model_dump()}
    with Run(
        lake,
        run_id,
        "label",
        config,
        labeler.id,
        policy.id,
        model_hashes=labeler.identity["model"],
        # Looked for again once this one is on record: another may have started while Ray did.
        alone=not take_over and not stop.is_set(),
        on_error=warn,
    ) as run:
        # As `status` tells it, from the table: without the seconds in which Ray starts.
        started = time.monotonic()
        of_run = {"run_id": run_id, "labeler_id": labeler.id}
        log.info("run begins", extra={**of_run, "policy_id": policy.id})
        driver = _Driver(lake, labeler, policy, settings, run, stop, progress, warn)
        try:
            if not stop.is_set():
                driver.label(list_again)
                summary.pending = driver.accounts.pending
            run.status = summary.status = "drained" if stop.is_set() else "finished"
        except Fenced:
            # What the workers wrote and nobody will commit may be forgotten by now.
            complete(lake)
            raise
        finally:
            status = "failed" if run.status == "running" else run.status
            log.info("run ends", extra={**of_run, "status": status, "counts": driver.accounts.counts})
    summary.counts, summary.seconds = driver.accounts.counts, time.monotonic() - started
    return summary


class _Driver:
    """The moving parts of one run."""

    def __init__(
        self,
        lake: Lake,
        labeler: Labeler,
        policy: Policy,
        settings: RunSettings,
        run: Run,
        stop: threading.Event,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self.accounts = Accounts()
        self._lake, self._labeler, self._policy, self._settings = lake, labeler, policy, settings
        self._run, self._stop, self._progress = run, stop, progress
        self._committer = Committer(lake, labeler.id, run.run_id, on_retry=warn)
        run.counts = self.accounts.counts
        self._observed, self._observed_at = dict(self.accounts.counts), 0.0

    def label(self, list_again: Callable[[], pa.Table]) -> None:
        self._committer.fence()
        # Both again, now that nobody else can decide anything: the run before may have gone on until this moment.
        refuse_other_policy(self._lake, self._labeler.id, self._policy.id)
        work = list_again()
        before = self._committer.decided(work["video_id"].to_pylist())
        for video_id in work["video_id"].to_pylist():
            self.accounts.open(video_id, decided_before=len(before.get(video_id, ())))
        self._tell_progress()
        asked = self._settings
        pool = workers(
            asked.decode_workers,
            asked.label_workers,
            asked.worker_cpus,
            asked.decode_on,
            asked.label_on,
            self._labeler.weight_bytes,
            # Of a container that does not say how long it is, any length may be true.
            math.inf if work["duration_s"].null_count else pc.sum(work["duration_s"]).as_py() or 0.0,
        )
        stop = Stop(self._run.run_id)
        self._flag = stop.create()
        for _ in range(_ROUNDS):
            todo = self._unfinished(work, before)
            if not len(todo) or self._stop.is_set():
                return
            self._round(todo, stop, pool)
        if not self._stop.is_set():
            self._give_up(self._unfinished(work, before))
            self._observe(pool)

    def _round(self, todo: pa.Table, stop: Stop, pool: Workers) -> None:
        dataset = decisions(
            todo,
            self._labeler,
            self._policy,
            self._lake,
            self._run.run_id,
            stop,
            pool,
            self._settings.segment_timeout,
        )
        # Otherwise only the text of it would be left of what a stage raised.
        dataset.context.raise_original_map_exception = True
        # Ours knows signs of life other than blocks, and can explain a stall: see `stall_timeout`.
        dataset.context.execution_no_progress_timeout_s = -1
        committed = heard = time.monotonic()
        try:
            for report in _stream(dataset):
                if report:
                    heard = time.monotonic()
                    self.accounts.add(report)
                    self._tell_progress()
                elif stop.is_stalled(time.monotonic() - heard, self._settings.stall_timeout):
                    raise Stalled(self._diagnosis(todo, pool))
                if self._stop.is_set():
                    stop.request()
                if time.monotonic() - committed >= self._settings.commit_every:
                    self._commit()
                    committed = time.monotonic()
                if time.monotonic() - self._observed_at >= REFRESH_S:
                    self._observe(pool)
        finally:
            self._commit()
            self._observe(pool)

    def _tell_progress(self) -> None:
        self._progress({**self.accounts.counts, "videos_pending": self.accounts.pending})

    def _observe(self, pool: Workers) -> None:
        """Tell Prometheus what has changed."""
        for name, count in self.accounts.counts.items():
            metric = VIDEOS if name.startswith("videos_") else PAIRS
            metric.record(count - self._observed[name], outcome=name.removeprefix("videos_"))
        self._observed, self._observed_at = dict(self.accounts.counts), time.monotonic()
        QUEUE.record(len(self.accounts.unfinished), queue="videos")
        QUEUE.record(self.accounts.uncommitted, queue="commit")
        for stage, processes in (
            ("sample", pool.decode),
            ("annotate", pool.label),
            ("write", pool.write or pool.label),
        ):
            STAGE_WORKERS.record(processes, stage=stage)

    def _diagnosis(self, todo: pa.Table, pool: Workers) -> str:
        """Return what a run without any outcome may be waiting for."""
        open_ = pc.is_in(todo["video_id"], value_set=pa.array(self.accounts.unfinished, pa.string()))
        waiting = todo["uri"].filter(open_).to_pylist()
        there, free = ray.cluster_resources(), ray.available_resources()
        said = f"no sign of life for {self._settings.stall_timeout:g} s, {counted(len(waiting), 'video')} unfinished"
        said += f" ({waiting[0]}, ...)" if waiting else ""
        said += f"; nodes {sum(node['Alive'] for node in ray.nodes())}"
        for name, wanted in (
            ("CPU", pool.decode * pool.decode_cpus + pool.label * pool.label_cpus),
            ("GPU", pool.label * pool.label_gpus),
        ):
            said += (
                f", {name} {there.get(name, 0):g} ({free.get(name, 0):g} free, all workers together ask for {wanted:g})"
            )
        for label_ in filter(None, (pool.decode_on, pool.label_on)):
            said += f", nodes with {label_} {len(nodes_with(label_))}"
        return (
            f"{said}: start nodes or ask for fewer workers where that is too much, else look at the workers' logs "
            f"({_where_logs_are()}); run the same command to resume"
        )

    def _unfinished(self, work: pa.Table, before: dict[str, list[str]]) -> pa.Table:
        open_ = set(self.accounts.unfinished)
        rows = [
            {**row, "decided": [*before.get(row["video_id"], ()), *self.accounts.decided(row["video_id"])]}
            for row in work.to_pylist()
            if row["video_id"] in open_
        ]
        return pa.Table.from_pylist(rows, schema=WORK)

    def _give_up(self, todo: pa.Table) -> None:
        """Videos whose sum still does not balance are failures, not silence."""
        failures = [
            Failure(
                scope="video",
                stage="account",
                error_type="SumDoesNotBalance",
                message=f"after {_ROUNDS} rounds pairs sampled and pairs decided differ: workers died, or decoding is "
                "not deterministic here",
                transient=True,
                video_id=row["video_id"],
                uri=row["uri"],
                attempt=row["attempt"],
                labeler_id=self._labeler.id,
                run_id=self._run.run_id,
                decoder=self._labeler.decoder,
            )
            for row in todo.to_pylist()
        ]
        self.accounts.add(Report(failures=failures))
        self._commit()

    def _commit(self) -> None:
        if not self.accounts.uncommitted:
            return
        files, failures, finished = self.accounts.take()
        stamp: dict[str, Any] = {"labeler_id": self._labeler.id, "run_id": self._run.run_id, "finished_at": now()}
        files += self._driver_file("failures", [failure.to_row() for failure in failures])
        files += self._driver_file("progress", [{**row, **stamp} for row in finished])
        self._committer.commit(files)
        self._log(failures, finished)

    def _log(self, failures: list[Failure], finished: list[dict[str, Any]]) -> None:
        for failure in failures:
            why = {name: getattr(failure, name) for name in ("video_id", "uri", "scope", "stage", "error_type")}
            log.info("failure: %s", failure.message, extra={"run_id": self._run.run_id, **why})
        for row in finished:
            log.info("video finished", extra={"run_id": self._run.run_id, **row})

    def _driver_file(self, name: str, rows: list[dict[str, Any]]) -> list[DataFile]:
        return [self._lake.write_file(to_table(name, rows), name, self._run.run_id)] if rows else []


def _where_logs_are() -> str:
    if os.environ.get("RAY_ADDRESS"):
        return "`ray logs`"
    # Ray on this machine has no dashboard, which `ray logs` asks. Its sockets are beside its logs.
    return str(Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1] / "logs")


def refuse_other_policy(lake: Lake, labeler_id: str, policy_id: str) -> None:
    """Raise Refused where the labeler has decided under another policy: one is active per (lake, labeler)."""
    for name in ("triples", "rejections"):
        first = lake.dataset(name).head(1, columns=["policy_id"], filter=pc.field("labeler_id") == labeler_id)
        if len(first) and (active := first["policy_id"][0].as_py()) != policy_id:
            raise Refused(
                f"labeler {labeler_id} decided under policy {active} in this lake, not {policy_id}: a labeler keeps "
                "its policy; to see other thresholds, filter the score columns in SQL, or use another lake"
            )


def _stream(dataset: ray.data.Dataset) -> Iterator[Report | None]:
    """Reports as they come; None about every second without any, so that the driver can commit and look around."""
    arrived: queue.Queue[Report | BaseException | None] = queue.Queue()

    def consume() -> None:
        try:
            for row in dataset.iter_rows():
                arrived.put(pickle.loads(row["report"]))  # noqa: S301 - our own workers wrote it
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=consume, name="reports", daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=1)
        except queue.Empty:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise _cause(item)
        yield item


def _cause(error: BaseException) -> BaseException:
    """Unwrap an error that a worker raised on purpose from Ray's; return any other error as it is."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, Unavailable | Refused):
            # Ray derives a class of its own from that of the error.
            kind: type[WorldlakeError] = next(
                one for one in type(inner).__mro__ if one.__module__ == WorldlakeError.__module__
            )
            # The first line is all that it said; Ray adds advice of its own.
            return kind(str(inner.args[0]).splitlines()[0])
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
