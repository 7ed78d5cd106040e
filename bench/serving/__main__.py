"""How a service holds up under load, against the same model behind plain FastAPI and behind LitServe, in one run.

    python -m bench.serving [--out bench/results/serving.json]

Every server runs on core 0, all its processes; clients run on core 1. A request is one frame pair, as JSON, of as
many pixels as the model sees. What the model does by itself on the servers' core, in batches and with nothing around
it, is measured in the same run.
First N clients at once, each with its next request when it has its answer; then requests that come by chance
(Poisson) at multiples of what was answered at best, whose latency counts from when they were due. Last of all ten
times the capacity for a minute, and what becomes of memory. `larger` is a model of the builtin one's class and with
five times its work: real models are larger still, and the service around them costs the same. On a machine with a
GPU models run there:

    python -m bench.serving --models qwen2.5-vl-3b --server-cores 0-11 --client-cores 12-15
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.serving.bodies import bodies
from bench.serving.load import GIVE_UP_S, Load, summary
from bench.serving.models import NAMES as MODELS
from bench.serving.models import write
from bench.serving.servers import NAMES as SERVERS
from bench.serving.servers import Server, Watch, prefer, serving

CLIENTS = (1, 8, 64, 256)
RATES = (0.25, 0.5, 1.0, 2.0)
OVERLOAD = 10
WARM_S = 2.0
PAIRS = 256


def main() -> None:
    """Measure and print; `--out` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["builtin", "larger"], choices=MODELS)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=SERVERS)
    parser.add_argument("--seconds", type=float, default=10, help="of every load but the last")
    parser.add_argument("--overload", type=float, default=60, help="seconds of ten times the capacity")
    parser.add_argument(
        "--priority", type=int, default=0, help="before others on a machine that is shared: down to -20"
    )
    parser.add_argument("--server-cores", type=_cores, default={0}, help="such as 0-11 (default: 0)")
    parser.add_argument("--client-cores", type=_cores, default={1}, help="such as 12-15 (default: 1)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prefer(os.getpid(), options.priority)
    os.sched_setaffinity(0, options.client_cores)
    figures: dict[str, Any] = {"models": {}}
    if options.out and options.out.exists():
        # Models that are not asked for stay as they are.
        figures = json.loads(options.out.read_text())
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        for name in options.models:
            for found in _of_model(name, Path(folder) / name, options):
                figures["models"][name] = found
                if options.out:
                    options.out.write_text(json.dumps(figures, indent=1) + "\n")


def _cores(text: str) -> set[int]:
    first, _, last = text.partition("-")
    return set(range(int(first), int(last or first) + 1))


def _machine() -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"


def _of_model(name: str, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures so far, after each server."""
    folder.mkdir()
    model = write(name, folder / "model")
    found: dict[str, Any] = {"machine": _machine(), "seconds": options.seconds, "alone": _alone(model, options)}
    found["servers"] = {}
    asked = bodies(PAIRS, found["alone"]["image_size"])
    print(f"\n{name}: the model by itself answers {found['alone']['per_s']:.1f} pairs/s", flush=True)
    for server in options.servers:
        with serving(server, model, folder) as running:
            running.keep_to(options.server_cores, options.priority)
            found["servers"][server] = _measure(running, asked, options, found["alone"])
        yield found


def _alone(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of batches on the servers' cores, and the best rate."""
    command = [sys.executable, "-m", "bench.serving.peers", "model", "--model", model]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, options.server_cores),
    )
    prefer(process.pid, options.priority)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{model} does not answer")
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    told["per_s"] = max(1000 * int(size) / taken for size, taken in told["batch_ms"].items())
    return told


def _measure(
    server: Server, asked: Sequence[bytes], options: argparse.Namespace, alone: dict[str, Any]
) -> dict[str, Any]:
    alone_per_s = alone["per_s"]
    found: dict[str, Any] = {"closed": {}, "open": {}}
    # Until every process has started and every library is loaded.
    warm = Load(f"{server.url}/v1/label", asked, key=server.key)
    _run(warm, lambda: warm.closed(16, WARM_S), 0)
    computed = server.batches()
    for clients in CLIENTS:
        if server.name == "plain" and clients * alone["batch_ms"]["1"] > 1000 * GIVE_UP_S:
            # One at a time: most would be given up.
            continue
        one = _closed(server, asked, clients, options.seconds)
        before, computed = computed, server.batches()
        # The seconds of warming are in both.
        one["pairs_a_batch"] = one.pop("answered_in_all") / (computed - before) if computed > before else 1.0
        found["closed"][clients] = one
        _say(f"{server.name}, {clients} clients", one, alone_per_s)
    peak = max(one["per_s"] for one in found["closed"].values())
    found |= {"peak_per_s": peak, "share_of_alone": peak / alone_per_s}
    for rate in RATES:
        one = _open(server, asked, rate * peak, options.seconds)
        found["open"][rate] = one
        _say(f"{server.name}, {rate:g} x capacity", one, alone_per_s)
    # What the others take on and never answer would keep them busy for long.
    seconds = options.overload if server.name == "worldlake" else min(options.overload, options.seconds)
    with Watch(server) as watch:
        one = _open(server, asked, OVERLOAD * peak, seconds)
    found["overload"] = one | {"goodput_of_peak": one["per_s"] / peak, "mib": watch.mib}
    _say(f"{server.name}, {OVERLOAD} x capacity", one, alone_per_s)
    print(f"  memory {watch.mib[:1]} to {watch.mib[-1:]} MiB, at most {max(watch.mib, default=0)}", flush=True)
    return found


def _closed(server: Server, asked: Sequence[bytes], clients: int, seconds: float) -> dict[str, Any]:
    load = Load(f"{server.url}/v1/label", asked, key=server.key)
    cpu_s = server.cpu_s()
    one = _run(load, lambda: load.closed(clients, WARM_S + seconds), seconds)
    # In all, with the seconds of warming: CPU is counted over these as well.
    answered = sum(sample.status == 200 for sample in load.samples)
    used = {kind: taken - cpu_s.get(kind, 0) for kind, taken in server.cpu_s().items()}
    one["cpu_ms_a_request"] = {kind: round(1000 * taken / max(1, answered), 2) for kind, taken in used.items()}
    return one | {"answered_in_all": answered}


def _open(server: Server, asked: Sequence[bytes], per_s: float, seconds: float) -> dict[str, Any]:
    load = Load(f"{server.url}/v1/label", asked, key=server.key)
    return {"asked_per_s": per_s} | _run(load, lambda: load.open(per_s, WARM_S + seconds), seconds)


def _run(load: Load, send: Callable[[], Awaitable[None]], seconds: float) -> dict[str, Any]:
    async def run() -> None:
        await send()

    asyncio.run(run())
    found = summary(load.samples, WARM_S, WARM_S + seconds)
    found["problems"] = sorted({one.problem for one in load.samples if one.status not in (200, 429, 503)})[:5]
    return found


def _say(what: str, one: dict[str, Any], alone_per_s: float) -> None:
    latency = one["ms"] or {"p50": float("nan"), "p95": float("nan"), "p99": float("nan")}
    text = (
        f"{what:28}{one['per_s']:8.1f}/s ({one['per_s'] / alone_per_s:4.0%} of the model's own)"
        f"{latency['p50']:9.0f}{latency['p95']:9.0f}{latency['p99']:9.0f} ms (p50, p95, p99)"
    )
    if "pairs_a_batch" in one:
        text += f", {one['pairs_a_batch']:.1f} pairs a batch"
    if one["refused"]:
        text += (
            f", {one['refused']} refused after {one['refusal_ms']['p50']:.0f} ms (p99 {one['refusal_ms']['p99']:.0f})"
        )
    if one["failed"]:
        text += f", {one['failed']} failed"
    print(text, flush=True)


if __name__ == "__main__":
    main()
