"""Labeling runs as their users start them, for tests: small clips, a tiny model, a policy that accepts about half."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from lake.tables import Lake
from tests.worldlake.command import PROGRAM, worldlake

# By motion, which no rounding of a model's arithmetic moves: the least rejects half of the sample world's pairs, the
# most half of those of `tests.media`.
POLICY = "default:\n  motion: {min: 0.0015, max: 0.057}\n  text: {min: 1.0}\n"

# Different from run to run by design.
_UNSTABLE = {"run_id", "labeled_at"}
_SCORES = ("confidence", "direction", "copy")


def words(lake: str, model: Path, *options: str) -> list[str]:
    """The command line of a labeling run, without the program."""
    policy = model / "policy.yaml"
    policy.write_text(POLICY)
    command = ["label", "--lake", lake, "--model", f"hf:{model}", "--image-size", "64", "--policy", str(policy)]
    command += ["--commit-every", "1", *options]
    # Half of what a short run takes is starting processes: one of each unless a test wants more.
    for option in ("--decode-workers", "--label-workers"):
        command += [] if option in options else [option, "1"]
    return command


def label(lake: str, model: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Exit code of a labeling run, and everything it printed."""
    return worldlake(*words(lake, model, *options), timeout_s=240, **environment)


class Labeling:
    """One `worldlake label` process on a lake, to be signaled or to have its processes killed."""

    def __init__(self, lake: str, model: Path, *options: str, driver: tuple[str, ...] = (), **environment: str) -> None:
        program = driver or (PROGRAM,)
        self.command = [*program, *words(lake, model, *options)]
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            # Its own session, so that a test can end whatever Ray leaves behind.
            start_new_session=True,
        )

    def wait(self, timeout_s: float = 240) -> tuple[int, str]:
        """Exit code and all that it printed."""
        try:
            output = self.process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"no end after {timeout_s} s: {self.process.communicate()[0]}") from None
        self.end()
        return self.process.returncode, output

    def end(self) -> None:
        """Kill whatever is left of it."""
        for member in _session(self.process.pid):
            member.kill()

    def find(self, role: str) -> list[psutil.Process]:
        """Processes of a role: driver, raylet, label (actor), sample (actor) or decode (child of a sample actor)."""
        if role == "driver":
            return [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        return [process for process in _session(self.process.pid) if _role(process) == role]

    def kill(self, role: str, timeout_s: float = 60) -> bool:
        """Kill -9 one process of a role, waiting for one to appear; False when the run ended first."""
        until = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < until:
            for process in self.find(role)[:1]:
                process.send_signal(signal.SIGKILL)
                return True
            time.sleep(0.1)
        return False


def _session(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, ProcessLookupError):
            continue


def _role(process: psutil.Process) -> str:
    try:
        command, parent = " ".join(process.cmdline()), process.parent()
        above = " ".join(parent.cmdline()) if parent else ""
    except psutil.Error:
        return ""
    if "MapWorker(MapBatches(Annotate))" in command:
        return "label"
    if "MapWorker(MapBatches(SampleVideos))" in command:
        return "sample"
    if "MapWorker(MapBatches(SampleVideos))" in above and "spawn_main" in command:
        return "decode"
    return "raylet" if "/raylet/raylet" in command else ""


def wait_until(condition: Callable[[], Any], timeout_s: float = 240) -> None:
    """Return when the condition holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"{condition} does not hold after {timeout_s} s")
        time.sleep(0.2)


def rows(lake: Lake, name: str) -> int:
    """Rows of a table that anybody can see now."""
    return lake.dataset(name).count_rows()


def decisions(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    """Return decisions by table, sorted by id, without what differs from run to run."""
    return {name: _stable(lake.dataset(name).to_table()) for name in ("triples", "rejections")}


def _stable(table: pa.Table) -> list[dict[str, Any]]:
    table = table.drop_columns([name for name in table.schema.names if name in _UNSTABLE]).sort_by("triple_id")
    result: list[dict[str, Any]] = table.to_pylist()
    return result


def assert_same_decisions(lake: Lake, expected: dict[str, list[dict[str, Any]]]) -> None:
    """The same triples and rejections with the same contents, each once; scores to what float32 sums differ by."""
    found = decisions(lake)
    for name, wanted in expected.items():
        assert [row["triple_id"] for row in found[name]] == [row["triple_id"] for row in wanted], name
        for row, want in zip(found[name], wanted, strict=True):
            for score in _SCORES:
                assert abs(row.pop(score) - want[score]) < 1e-4, (name, row["triple_id"], score)
            assert row == {key: value for key, value in want.items() if key not in _SCORES}
