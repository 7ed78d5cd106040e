"""`worldlake train` as its user runs it, with processes that a test can find and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.runs import wait_until

_NAMES = {"worker": "RayTrainWorker", "feeder": "Feeder"}


class Training:
    """One `worldlake train world` process with the name of its run, on a lake."""

    def __init__(self, lake: str, model: Path, run: str, out: Path, *options: str, **environment: str) -> None:
        self.folder = out / run
        program = str(Path(sys.executable).with_name("worldlake"))
        self.command = [program, "train", "world", "--lake", lake, "--model", f"hf:{model}", "--run", run]
        self.command += ["--out", str(out), *options]
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
        for member in self._members():
            member.kill()

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        path = self.folder / "log" / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int, timeout_s: float = 180) -> None:
        """Return when a checkpoint is of that step or a later one, or the run has ended: the log is a second late."""
        wait_until(lambda: self.process.poll() is not None or self._saved() >= step, timeout_s)

    def _saved(self) -> int:
        return max((int(path.parent.name[-8:]) for path in self.folder.glob("checkpoint-*/state.json")), default=0)

    def kill(self, role: str, timeout_s: float = 60) -> bool:
        """Kill -9 the driver, a worker or a feeder, waiting for one to appear; False when the run ended first."""
        until = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < until:
            for process in self.find(role)[:1]:
                process.send_signal(signal.SIGKILL)
                return True
            time.sleep(0.05)
        return False

    def find(self, role: str) -> list[psutil.Process]:
        """Its processes of a role: driver, worker or feeder."""
        if role == "driver":
            return [psutil.Process(self.process.pid)]
        return [member for member in self._members() if _NAMES[role] in " ".join(_cmdline(member))]

    def _members(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()  # type: ignore[no-any-return]
    except psutil.Error:
        return []
