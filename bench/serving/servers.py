"""Servers of a model as processes of their own: started, kept to one core, watched, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from lake.tables import Lake
from serve.keys import Keys

PER_MINUTE = 10_000_000
"""A rate that no load reaches."""
NAMES = ("worldlake", "plain", "litserve")
_METRICS_EVERY_S = 1 + int(os.environ.get("RAY_metrics_report_interval_ms", "10000")) / 1000  # noqa: SIM112
"""Ray's processes tell its metrics agent every ten seconds, unless told otherwise."""


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`; its processes are those of the session that `process` leads."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    key: str | None = None
    """Of a service that wants one."""

    def members(self) -> Iterator[psutil.Process]:
        """Its processes."""
        for one in psutil.process_iter():
            try:
                if os.getsid(one.pid) == self.process.pid and one.status() != psutil.STATUS_ZOMBIE:
                    yield one
            except (psutil.Error, ProcessLookupError):
                continue

    def find(self, what: str) -> list[psutil.Process]:
        """Its processes whose command line says `what`."""
        return [one for one in self.members() if what in _command(one)]

    def keep_to(self, cores: set[int], priority: int) -> None:
        """Let every thread of it run on these cores only; where this may be set, before others on the machine."""
        for one in self.members():
            for thread in one.threads():
                os.sched_setaffinity(thread.id, cores)
        prefer(self.process.pid, priority)

    def memory(self) -> int:
        """Bytes; what several of its processes share counts once."""
        total = 0
        for one in self.members():
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    def cpu_s(self) -> dict[str, float]:
        """CPU-seconds so far, by what the process is."""
        taken: dict[str, float] = {}
        for one in self.members():
            try:
                times = one.cpu_times()
                taken[_kind(one)] = taken.get(_kind(one), 0) + times.user + times.system
            except psutil.Error:
                continue
        return taken

    def batches(self) -> int:
        """Batches that were computed so far; 0 of a server that makes none."""
        if self.name != "worldlake":
            return len(self.log.read_text().splitlines())
        (raylet,) = self.find("/raylet/raylet")
        session = next(part.split("=")[1] for part in raylet.cmdline() if part.startswith("--session_dir="))
        (port,) = Path(session).glob("metrics_export_port_*")
        time.sleep(_METRICS_EVERY_S)
        told = httpx.get(f"http://127.0.0.1:{port.read_text().strip()}/metrics").text
        # Its sums are put together from the middles of buckets; its counts are counts.
        counts = [line for line in told.splitlines() if line.startswith("ray_serve_actual_batch_size_count{")]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in counts if 'function_name="label"' in line)


def prefer(session: int, priority: int) -> None:
    """Let the kernel run a session's processes before those of others on this machine."""
    try:
        # Where the kernel groups processes by session, nice only counts within one.
        Path(f"/proc/{session}/autogroup").write_text(str(priority))
    except OSError as error:
        print(f"the measured processes have no priority over others: {error}", file=sys.stderr)


@contextmanager
def serving(name: str, model: str, folder: Path) -> Iterator[Server]:
    """A server that answers. It is ended however this is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"{name}.batches"
    log.write_text("")
    key = None
    if name == "worldlake":
        lake = Lake(str(folder / "lake"))
        lake.create()
        _, key = Keys(lake).create("bench", ("admin",), per_minute=PER_MINUTE)
        program = [str(Path(sys.executable).with_name("worldlake")), "serve", "--lake", lake.uri, "--world", "none"]
    else:
        program = [sys.executable, "-m", "bench.serving.peers", name, "--log", str(log)]
    with (folder / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(
            [*program, "--model", model, "--port", str(port)],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    server = Server(name, f"http://127.0.0.1:{port}", process, log, key)
    try:
        _wait(server, folder / f"{name}.log")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for one in server.members():
            one.kill()
        process.wait()


def _wait(server: Server, log: Path) -> None:
    path = "readyz" if server.name == "worldlake" else "health"
    for _ in range(360):
        if server.process.poll() is not None:
            raise SystemExit(f"{server.name} did not start: {log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{server.url}/{path}").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"{server.name} does not answer: {log.read_text()[-2000:]}")


class Watch:
    """Memory of a server over time."""

    def __init__(self, server: Server, every_s: float = 2.0) -> None:
        self.mib: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server, every_s), daemon=True)

    def _run(self, server: Server, every_s: float) -> None:
        while not self._ended.wait(every_s):
            self.mib.append(server.memory() >> 20)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kind(process: psutil.Process) -> str:
    command = _command(process)
    kinds = {
        "ServeReplica:worldlake:Dynamics": "model",
        "ServeReplica:worldlake:Ingress": "ingress",
        "ProxyActor": "proxy",
        "spawn_main": "decode",
    }
    return next((kind for mark, kind in kinds.items() if mark in command), "other")
