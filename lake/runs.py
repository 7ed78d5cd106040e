"""The `runs` table: an append-only log of what every run read, wrote and counted; and heartbeats: who is alive.

A heartbeat is an object `<lake>/_heartbeats/<run_id>.json`, overwritten while the run works. In the table every
beat would be a commit and a file, and every command would read them all: 17,280 after two days.

Who is alive is advice that saves people from ending their own runs. What keeps a lake whole is `lake.writer`: a run
that was taken for dead finds itself fenced, whatever clocks, process tables and heartbeats said.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lake import tombstones
from lake.errors import Fenced, Refused
from lake.metrics import RUN_IDLE
from lake.schemas import TABLES
from lake.storage import is_s3, join
from lake.tables import Lake, now
from lake.writer import Writer, fences

HEARTBEAT_S = 10.0
# Three missed heartbeats: a commit can take seconds while an object store is slow.
LIVE_FOR = timedelta(seconds=3 * HEARTBEAT_S)
_HEARTBEATS = "_heartbeats"
_ALONE = "wait for it, or end it with --take-over"


@dataclass(frozen=True)
class RunState:
    """The newest event or heartbeat of a run."""

    run_id: str
    kind: str
    status: str
    labeler_id: str | None
    policy_id: str | None
    config: dict[str, Any]
    counts: dict[str, Any]
    timings: dict[str, Any]
    tables_read: dict[str, Any]
    host: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime

    @property
    def live(self) -> bool:
        """Return whether the run seems live, by its last heartbeat and this machine; for people to read."""
        return self.status == "running" and abs(now() - self.heartbeat_at) < LIVE_FOR and not self.is_gone

    @property
    def is_gone(self) -> bool:
        """Return whether its process was on this machine, in this boot and PID namespace, and has ended."""
        return self.host == _host() and not Path(f"/proc/{self.pid}").exists()


def new_run_id() -> str:
    """An id that sorts by the time of its making."""
    return f"{now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def states(lake: Lake) -> list[RunState]:
    """Return the newest state of every run, oldest run first."""
    columns = [
        "run_id", "kind", "status", "labeler_id", "policy_id", "config", "counts", "timings", "tables_read",
        "host", "pid", "started_at", "heartbeat_at", "recorded_at",
    ]  # fmt: skip
    # Heartbeats first: one that is gone by then is of a run whose end is in the table.
    beats = _heartbeats(lake)
    newest: dict[str, dict[str, Any]] = {}
    # A run has one process at a time, whose clock may be set back meanwhile: an end comes after its beginning.
    order = ("started_at", "status", "recorded_at")
    rows = lake.read("runs", columns).to_pylist()
    for row in sorted(rows, key=lambda row: (row[order[0]], row[order[1]] != "running", row[order[2]])):
        newest[row["run_id"]] = row
    for row in newest.values():
        del row["recorded_at"]
        for column in ("config", "counts", "timings", "tables_read"):
            row[column] = json.loads(row[column] or "{}")
        if row["status"] == "running":
            row.update(beats.get(row["run_id"], {}))
    return sorted((RunState(**row) for row in newest.values()), key=lambda state: state.started_at)


def _heartbeats(lake: Lake) -> dict[str, dict[str, Any]]:
    """Return what runs that have not ended said last, by run: `heartbeat_at`, `counts`, `timings`."""
    folder = join(lake.uri, _HEARTBEATS)
    if not is_s3(folder) and not Path(folder).exists():
        return {}
    uris = [entry.uri for page in lake.storage.pages(folder) for entry in page if entry.uri.endswith(".json")]
    with ThreadPoolExecutor(8) as pool:
        contents = pool.map(lake.storage.get, uris)
    beats = {
        uri.rsplit("/", 1)[-1].removesuffix(".json"): json.loads(content)
        for uri, content in zip(uris, contents, strict=True)
        if content
    }
    for beat in beats.values():
        beat["heartbeat_at"] = datetime.fromisoformat(beat["heartbeat_at"])
    return beats


def find_alive(
    lake: Lake, concerns: Callable[[RunState], bool], stop: threading.Event | None = None
) -> RunState | None:
    """Return a run that gave a sign of life while this watched; None once all have kept silent, or on `stop`.

    Beats are compared with each other, not with a clock: the watching takes up to `LIVE_FOR` where a run seems to work
    on another machine, and no time where no run does. Not services: one that writes may live for months, and nobody
    has to wait for it, see ``serve.live_writer``.
    """
    stop = stop or threading.Event()
    first: dict[str, datetime] = {}
    until = time.monotonic() + LIVE_FOR.total_seconds()
    while True:
        for run in states(lake):
            if not _may_live(run) or not concerns(run) or _SILENT.get(run.run_id) == run.heartbeat_at:
                continue
            if run.live and run.host == _host():
                return run
            if first.setdefault(run.run_id, run.heartbeat_at) != run.heartbeat_at:
                return run
        if time.monotonic() > until:
            _SILENT.update(first)
        if all(_SILENT.get(run_id) == beat for run_id, beat in first.items()) or stop.wait(_LOOK_EVERY_S):
            return None


_LOOK_EVERY_S = 1.0
# What this process has watched in vain need not be watched again.
_SILENT: dict[str, datetime] = {}
# How far clocks may differ: a run that has been silent for longer is not waited for.
_SKEW = timedelta(hours=1)


def _may_live(run: RunState) -> bool:
    return run.status == "running" and run.kind != "serve" and not run.is_gone and abs(now() - run.heartbeat_at) < _SKEW


def refuse_second_run(lake: Lake, labeler_id: str, stop: threading.Event) -> None:
    """Return when no run of the labeler is alive, watching one that may have been killed until it is silent.

    Raises:
        Refused: a run of the labeler is alive: its heart beat while we watched.
    """
    if run := find_alive(lake, lambda run: run.labeler_id == labeler_id, stop):
        raise _at_work(run, _ALONE)


def refuse_beside_a_run(lake: Lake, kind: str) -> None:
    """Raise Refused where any run is alive, a service apart. For what cannot have a record of its own yet."""
    if run := find_alive(lake, lambda run: True):
        raise _at_work(run, f"{kind} when it has ended")


def _at_work(run: RunState, remedy: str) -> Refused:
    of_whom = f" of labeler {run.labeler_id}" if run.labeler_id else ""
    return Refused(f"run {run.run_id}{of_whom} is alive on {run.host} (pid {run.pid}): {remedy}")


@dataclass
class Run:
    """One run that records its start and its end, and beats in between. Use as a context manager.

    Entering it raises Refused beside a run that must be alone, or when this one must and another is alive.
    """

    lake: Lake
    run_id: str
    kind: str
    config: dict[str, Any]
    labeler_id: str | None = None
    policy_id: str | None = None
    model_hashes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    tables_read: dict[str, int] = field(default_factory=dict)
    """Versions by table, recorded with every event; `videos` as it is at the start where none is named."""
    status: str = "running"
    alone: bool = False
    """True if no other run of the labeler may be alive."""
    take_over: bool = False
    """True to begin beside runs that seem alive: fence them first."""
    on_error: Callable[[str], None] = lambda message: None

    def __enter__(self) -> Run:
        # A training begins more than once, on machines whose clocks differ: its rows are in the order of its starts.
        before = self.lake.read("runs", ["started_at"], pc.field("run_id") == self.run_id)["started_at"].to_pylist()
        self._started_at = max([now(), *(start + timedelta(microseconds=1) for start in before)])
        self._writer = Writer(self.lake, known={})
        self._ended = threading.Event()
        self.tables_read = self.tables_read or self._versions("videos")
        self.record()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()
        # Recorded and alive first, looked around then: of two that start at once at least one sees the other.
        if not self.take_over and (other := find_alive(self.lake, self._excludes)):
            self._silence()
            self.status = "refused"
            self.record()
            raise _at_work(other, _ALONE if self._is_second_to(other) else f"{self.kind} when it has ended")
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._silence()
        if self.status == "running":
            self.status = "finished" if error is None else "failed"
        try:
            self.record(tables_written=self._versions(*(name for name in TABLES if name != "runs")))
        except Exception as unrecorded:
            if error is None:
                raise
            # The error that ended the run says more than that its end could not be recorded.
            self.on_error(f"the end of run {self.run_id} could not be recorded: {unrecorded}")

    def _silence(self) -> None:
        self._ended.set()
        self._heart.join()
        with suppress(Exception):  # one that is left over is read in vain, no more
            self.lake.storage.delete(self._heartbeat)

    @property
    def _heartbeat(self) -> str:
        return join(self.lake.uri, _HEARTBEATS, f"{self.run_id}.json")

    def _excludes(self, other: RunState) -> bool:
        if other.run_id == self.run_id:
            return False
        # A forget ends every open writer, and a run that begins beside it may have to begin again.
        both = {self.kind, other.kind}
        return bool({"forget", "repair", "upgrade"} & both) or both == {"maintain"} or self._is_second_to(other)

    def _is_second_to(self, other: RunState) -> bool:
        return self.alone and other.labeler_id == self.labeler_id

    def _beat(self) -> None:
        seen, changed = dict(self.counts), time.monotonic()
        while True:
            if self.counts != seen:
                seen, changed = dict(self.counts), time.monotonic()
            RUN_IDLE.record(time.monotonic() - changed, kind=self.kind)
            if self._ended.wait(HEARTBEAT_S):
                return
            try:
                beat = {"heartbeat_at": now().isoformat(), "counts": self.counts, "timings": self.timings}
                self.lake.storage.put(self._heartbeat, json.dumps(beat).encode())
            except Exception as error:  # an unreachable store must not end a run that can wait for it
                self.on_error(f"heartbeat failed: {error}")

    def _versions(self, *names: str) -> dict[str, int]:
        return {name: self.lake.table(name).version() for name in names}

    def record(self, tables_written: dict[str, int] | None = None) -> None:
        """Put the run on record as it is now."""
        self._append(
            {
                "run_id": self.run_id,
                "kind": self.kind,
                "status": self.status,
                "labeler_id": self.labeler_id,
                "policy_id": self.policy_id,
                "config": json.dumps(self.config),
                "code_version": installed_version("worldlake"),
                "model_hashes": json.dumps(self.model_hashes),
                "tables_read": json.dumps(self.tables_read),
                "tables_written": json.dumps(tables_written) if tables_written else None,
                "counts": json.dumps(self.counts),
                "timings": json.dumps(self.timings),
                "host": _host(),
                "pid": os.getpid(),
                "started_at": self._started_at,
                "heartbeat_at": now(),
                "recorded_at": now(),
            }
        )

    def _append(self, row: dict[str, Any]) -> None:
        # That a run began and how it ended is on record also when a `forget` has ended its other writing.
        while True:
            self._writer.fences = fences(self.lake, ["runs"])
            # A source may have been forgotten since the run began.
            row["config"] = tombstones.redacted(row["config"], tombstones.read(self.lake))
            with suppress(Fenced):
                return self._writer.append("runs", [row])


@cache
def _host() -> str:
    """Return the machine, its boot and the PID namespace: a pid means nothing in another of any of these."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    booted = boot.read_text()[:8] if boot.exists() else "unknown"
    with suppress(OSError):
        return f"{socket.gethostname()}/{booted}/{os.readlink(namespace).strip('pid:[]')}"
    return f"{socket.gethostname()}/{booted}"
