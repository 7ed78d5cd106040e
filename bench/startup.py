"""Seconds that a command takes to start: wall clock, and CPU of all its processes.

    python -m bench.startup [--before FOLDER] [--rounds 5] [--only COMMAND] [--processes] [--out FILE]

Runs `--help`, `label --help`, `status` and `sql` on a lake, `label` on three clips of the sample world with a lake of
its own, and `serve` until it is ready and ended. `--before` names a checkout of another state of the code, such as a
worktree; the two take turns in the same run. CPU seconds are those of every process below this one, read ten times a
second, so what a process does in its last tenth is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parents[1]
FIRST_SEED = 7_100_000
CLIPS = 3
COMMANDS = ("--help", "label --help", "status", "sql", "label", "serve")
_PORT = 8765
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Watch:
    """CPU seconds of all processes below this one, by process, while a command runs."""

    is_detailed: bool = False
    seconds: dict[tuple[int, float], float] = field(default_factory=dict)
    names: dict[tuple[int, float], str] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    times, key = process.cpu_times(), (process.pid, process.create_time())
                    if self.is_detailed:
                        self.names[key] = _name(process.cmdline()) or self.names.get(key, "")
                    self.seconds[key] = times.user + times.system

    @property
    def total(self) -> float:
        """CPU seconds of all."""
        return sum(self.seconds.values())

    def by_name(self) -> dict[str, float]:
        """CPU seconds by what a process is called, the most first."""
        found: defaultdict[str, float] = defaultdict(float)
        for key, seconds in self.seconds.items():
            found[self.names[key]] += seconds
        most_first = sorted(found.items(), key=lambda one: -one[1])
        return {name: round(seconds, 2) for name, seconds in most_first if seconds >= 0.05}


def _name(words: list[str]) -> str:
    """Return the part of a command line that tells processes of Ray and of worldlake apart."""
    text = " ".join(words)
    for part in ("gcs_server", "raylet/raylet", "log_monitor", "dashboard/agent", "runtime_env/agent", "monitor.py"):
        if part in text:
            return part
    if text.startswith("ray::"):
        return text.split("(")[0] if "MapWorker" not in text else text
    return text[-60:]


def main() -> None:
    """Print medians; `--out` keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of another state of the code")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=COMMANDS, action="append", help="measure this command; repeat for several")
    parser.add_argument("--processes", action="store_true", help="also print CPU seconds by process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Processes of Ray that outlive their parent become children of this one, and are seen.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    states = {"before": options.before.resolve()} if options.before else {}
    states["now"] = HERE
    commands = options.only or COMMANDS
    found: dict[str, dict[str, list[tuple[float, float]]]] = {
        command: {state: [] for state in states} for command in commands
    }
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        lakes = {state: _prepared(Path(folder), state, code) for state, code in states.items()}
        for _ in range(options.rounds):
            for command in commands:
                for state, code in states.items():
                    wall, watch = _run(command, code, Path(folder), lakes[state], is_detailed=options.processes)
                    found[command][state].append((wall, watch.total))
                    print(f"{command:14} {state:7} {wall:6.2f} s wall {watch.total:6.2f} s CPU", flush=True)
                    if options.processes:
                        print("   " + "\n   ".join(f"{s:6.2f} {name}" for name, s in watch.by_name().items()))
    _report(found, options.out)


def _prepared(folder: Path, state: str, code: Path) -> str:
    """Return a lake with labels, made by that state of the code."""
    from sample_world.clips import write_folder

    videos = folder / "videos"
    if not videos.exists():
        write_folder(videos, range(FIRST_SEED, FIRST_SEED + CLIPS))
    lake = str(folder / f"lake-{state}")
    _call(code, "label", str(videos), "--lake", lake)
    _call(code, "keys", "create", "bench", "--scope", "read", "--lake", lake)
    _wait_for_all()
    return lake


def _command(code: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-m", "worldlake.cli", *words], {**os.environ, "PYTHONPATH": str(code)}


def _call(code: Path, *words: str) -> None:
    command, environment = _command(code, *words)
    # Not a pipe, which what Ray started may hold open for a while longer.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, env=environment, cwd=code, stdout=output, stderr=output, check=False)
        if done.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(words)}: {output.read().decode()}")


def _run(command: str, code: Path, folder: Path, lake: str, *, is_detailed: bool) -> tuple[float, Watch]:
    """Return wall seconds, and the processes, when all of them have ended."""
    fresh = str(folder / "fresh")
    words = {
        "status": ["status", "--lake", lake],
        "sql": ["sql", "SELECT count(*) FROM triples", "--lake", lake],
        "label": ["label", str(folder / "videos"), "--lake", fresh],
    }.get(command, command.split())
    with Watch(is_detailed) as watch:
        started = time.monotonic()
        if command == "serve":
            wall = _serve(code, lake)
        else:
            _call(code, *words)
            wall = time.monotonic() - started
        _wait_for_all()
    shutil.rmtree(fresh, ignore_errors=True)
    return wall, watch


def _serve(code: Path, lake: str) -> float:
    """Return seconds until the service says that it is ready."""
    command, environment = _command(code, "serve", "--lake", lake, "--port", str(_PORT))
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, cwd=code, stdout=output, stderr=output)
        try:
            while True:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/readyz") as answer:
                    if answer.status == 200:
                        return time.monotonic() - started
                if process.poll() is not None:
                    output.seek(0)
                    raise SystemExit(output.read().decode())
                time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(timeout=120)


def _wait_for_all() -> None:
    until = time.monotonic() + 60
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < until:
        psutil.wait_procs(left, timeout=0.2)


def _report(found: dict[str, dict[str, list[tuple[float, float]]]], out: Path | None) -> None:
    figures = {
        command: {
            state: {
                "wall_s": round(statistics.median(wall for wall, _ in runs), 2),
                "cpu_s": round(statistics.median(cpu for _, cpu in runs), 2),
            }
            for state, runs in states.items()
        }
        for command, states in found.items()
    }
    result = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "figures": figures}
    print(json.dumps(result, indent=2))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
