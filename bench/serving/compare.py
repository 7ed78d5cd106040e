"""Latency of a request by itself, of this state of the code and of another, side by side.

    git worktree add /tmp/before COMMIT
    python -m bench.serving.compare --before /tmp/before --out bench/results/door.json

Both services run at the same time and are asked in turn, so that what else the machine does slows both alike. Each has
a lake and a key of its own, made by its own code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx

from bench.serving.bodies import bodies
from bench.serving.servers import PER_MINUTE
from lake.tables import Lake

HERE = Path(__file__).parents[2]
STARTS_S = 180.0
PROGRAM = [sys.executable, "-c", "from worldlake.cli import main; main()"]


def key_of(code: Path, lake: str) -> str:
    """The token of a new key, made as the code in a folder makes them."""
    command = [*PROGRAM, "keys", "create", "bench", "--lake", lake, "--scope", "admin", "--per-minute", str(PER_MINUTE)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    made = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()


@contextmanager
def serving(code: Path, lake: str) -> Iterator[str]:
    """`worldlake serve` of the code in a folder: where it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*PROGRAM, "serve", "--lake", lake, "--world", "none", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=code, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    url, waits_until = f"http://127.0.0.1:{port}", time.monotonic() + STARTS_S
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > waits_until:
                raise SystemExit(f"the service in {code} does not start")
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    """Print milliseconds (median), and how many times as long the newer one takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="folder of another state of the code")
    parser.add_argument("--requests", type=int, default=200, help="of each kind, to each service (default: 200)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    (label,) = bodies(1)
    sql = b'{"sql": "SELECT 1"}'
    kinds = {"/healthz": None, "/": None, "/v1/labelers": None, "/v1/sql": sql, "/v1/label": label}
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as open_, tempfile.TemporaryDirectory() as folder:
        clients = []
        for name, code in (("before", options.before.resolve()), ("after", HERE)):
            lake = Lake(f"{folder}/{name}")
            lake.create()
            headers = {"Authorization": f"Bearer {key_of(code, lake.uri)}", "Content-Type": "application/json"}
            url = open_.enter_context(serving(code, lake.uri))
            clients.append(open_.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60)))
        for path, body in kinds.items():
            taken: tuple[list[float], list[float]] = ([], [])
            # The first ones start processes and open tables.
            for row in range(-10, options.requests):
                for client, times in zip(clients, taken, strict=True):
                    began = time.perf_counter()
                    client.request("POST" if body else "GET", path, content=body).raise_for_status()
                    if row >= 0:
                        times.append(1000 * (time.perf_counter() - began))
            before, after = (median(times) for times in taken)
            found[path] = {
                "before_ms": round(before, 2),
                "after_ms": round(after, 2),
                "ratio": round(after / before, 3),
            }
            print(path, found[path], flush=True)
    if options.out:
        machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
        about = {"machine": machine, "requests": options.requests, "before": options.before.name}
        options.out.write_text(json.dumps({**about, "paths": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
