"""The `runs` table: an append-only log of what every run read, wrote and counted; and heartbeats: who is alive.

A heartbeat is an object `<lake>/_heartbeats/<run_id>.json`, overwritten while the run is at work. In the table every
beat would be a commit and a file, and every command would read them all: 17,280 after two days.
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

from lake.errors import Refused
from lake.metrics import RUN_IDLE
from lake.schemas import TABLES
from lake.storage import is_s3, join
from lake.tables import Lake, now

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
        """Whether the run's process is at work, as far as its last heartbeat and this machine can tell."""
        if self.status != "running" or now() - self.heartbeat_at > LIVE_FOR:
            return False
        return self.host != _host() or Path(f"/proc/{self.pid}").exists()


def new_run_id() -> str:
    """An id that sorts by the time of its making."""
    return f"{now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def states(lake: Lake) -> list[RunState]:
    """The newest state of every run, oldest run first."""
    columns = [
        "run_id", "kind", "status", "labeler_id", "policy_id", "config", "counts", "timings", "tables_read",
        "host", "pid", "started_at", "heartbeat_at", "recorded_at",
    ]  # fmt: skip
    # Heartbeats first: one that is gone by then is of a run whose end is in the table.
    beats = _heartbeats(lake)
    newest: dict[str, dict[str, Any]] = {}
    for row in sorted(lake.read("runs", columns).to_pylist(), key=lambda row: row["recorded_at"]):
        newest[row["run_id"]] = row
    for row in newest.values():
        del row["recorded_at"]
        for column in ("config", "counts", "timings", "tables_read"):
            row[column] = json.loads(row[column] or "{}")
        if row["status"] == "running":
            row.update(beats.get(row["run_id"], {}))
    return sorted((RunState(**row) for row in newest.values()), key=lambda state: state.started_at)


def _heartbeats(lake: Lake) -> dict[str, dict[str, Any]]:
    """What runs that have not ended said last, by run: `heartbeat_at`, `counts`, `timings`."""
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


def live_runs(lake: Lake, labeler_id: str | None = None) -> list[RunState]:
    """Runs that are at work now; only those of one labeler if given.

    Not services: one that writes may go on for months, and nobody has to wait for it, see ``serve.writing``.
    """
    alive = [state for state in states(lake) if state.live and state.kind != "serve"]
    return [state for state in alive if labeler_id in (None, state.labeler_id)]


def refuse_second_run(lake: Lake, labeler_id: str, stop: threading.Event) -> None:
    """Return when no run of the labeler is alive, waiting for the heartbeat of a killed one to go stale; or on `stop`.

    Raises:
        Refused: a run of the labeler is alive: its heart beat while we watched.
    """
    first_seen = {run.run_id: run.heartbeat_at for run in live_runs(lake, labeler_id)}
    while (alive := live_runs(lake, labeler_id)) and not stop.is_set():
        for run in alive:
            if run.heartbeat_at != first_seen.get(run.run_id):
                raise _at_work(run, _ALONE)
        stop.wait(1)


def _at_work(run: RunState, remedy: str) -> Refused:
    of_whom = f" of labeler {run.labeler_id}" if run.labeler_id else ""
    return Refused(f"run {run.run_id}{of_whom} is at work on {run.host} (pid {run.pid}): {remedy}")


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
    """Whether no other run of the labeler may be alive."""
    on_error: Callable[[str], None] = lambda message: None

    def __enter__(self) -> Run:
        self._started_at = now()
        self._ended = threading.Event()
        self.tables_read = self.tables_read or self._versions("videos")
        self._record()
        # Recorded first, looked around then: of two that start at once at least one sees the other.
        if other := next((run for run in live_runs(self.lake) if self._excludes(run)), None):
            self.status = "refused"
            self._record()
            raise _at_work(other, _ALONE if self._is_second_to(other) else f"{self.kind} when it has ended")
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._heart.join()
        if self.status == "running":
            self.status = "finished" if error is None else "failed"
        try:
            self._record(tables_written=self._versions(*(name for name in TABLES if name != "runs")))
        except Exception as unrecorded:
            if error is None:
                raise
            # The error that ended the run says more than that its end could not be recorded.
            self.on_error(f"the end of run {self.run_id} could not be recorded: {unrecorded}")
            return
        with suppress(Exception):  # one that is left over is read in vain, no more
            self.lake.storage.delete(self._heartbeat)

    @property
    def _heartbeat(self) -> str:
        return join(self.lake.uri, _HEARTBEATS, f"{self.run_id}.json")

    def _excludes(self, other: RunState) -> bool:
        if other.run_id == self.run_id:
            return False
        # A forget deletes every file that no table names, also what another run is about to commit.
        both = {self.kind, other.kind}
        return "forget" in both or both == {"maintain"} or self._is_second_to(other)

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

    def _record(self, tables_written: dict[str, int] | None = None) -> None:
        self.lake.append(
            "runs",
            [
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
            ],
        )


@cache
def _host() -> str:
    """The machine and its boot: a pid means nothing on another host or after a restart."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text()[:8] if boot.exists() else 'unknown'}"
