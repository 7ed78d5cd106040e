"""Kill -9 the processes of a service under load, and ask it for much more than it can do."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx
import psutil
import pytest

from bench.serving.bodies import bodies
from bench.serving.load import Load, Sample
from bench.serving.servers import PER_MINUTE, Server
from lake.tables import Lake
from serve.keys import Keys
from tests.serve.test_live import wait_until_ready
from tests.worldlake.command import PROGRAM

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.alone]

CLIENTS = 8
BODIES = 16
RECOVERED_S = 3.0
"""A service that has answered everything for so long is well."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    Lake(str(folder / "lake")).create()
    with served(folder, free_port()) as made:
        yield made


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def key_of(folder: Path) -> str:
    """A key of the lake in a folder, the same for every service there that follows."""
    kept = folder / "token"
    if not kept.exists():
        kept.write_text(Keys(Lake(str(folder / "lake"))).create("clients", ("admin",), per_minute=PER_MINUTE)[1])
    return kept.read_text()


@contextmanager
def served(folder: Path, port: int) -> Iterator[Server]:
    """A service of the lake in a folder, as its user starts it; nothing of it is left at the end."""
    command = [PROGRAM, "serve", "--lake", str(folder / "lake"), "--port", str(port), "--world", "none"]
    # Fewer than a request may have: it is answered nevertheless.
    command += ["--batch-size", "8"]
    token = key_of(folder)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        begins = log.tell()
    made = Server("worldlake", f"http://127.0.0.1:{port}", process, folder / "log", token)
    try:
        # Not what of a service that was killed just now still answers there.
        until(lambda: process.poll() is not None or b"answers at" in made.log.read_bytes()[begins:], 120)
        wait_until_ready(process, made.url, made.log)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            for one in made.members():
                one.kill()


def the(server: Server, what: str) -> psutil.Process:
    (found,) = server.find(what)
    return found


class Victim(Protocol):
    """A process, or more of them."""

    def kill(self) -> object: ...


def under_load(url: str, victim: Victim, key: str | None, timeout_s: float = 45) -> list[Sample]:
    """Return the outcome of every request of eight clients while a victim was killed, until recovery."""
    load = Load(f"{url}/v1/label", bodies(BODIES), key=key)
    thread = threading.Thread(target=lambda: asyncio.run(load.closed(CLIENTS, timeout_s)))
    thread.start()
    try:
        until(lambda: sum(one.status == 200 for one in load.samples) >= 2 * CLIENTS, timeout_s)
        victim.kill()
        killed = time.monotonic()
        until(lambda: time.monotonic() - killed > RECOVERED_S and well(load.samples), timeout_s)
    finally:
        load.ends.set()
        thread.join()
    return load.samples


def well(samples: list[Sample]) -> bool:
    now = max(one.sent_s + one.latency_s for one in samples)
    recent = [one.status for one in samples if one.sent_s + one.latency_s > now - RECOVERED_S]
    return len(recent) > CLIENTS and set(recent) == {200}


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not recover"
        time.sleep(0.2)


def assert_each_is_answered(samples: list[Sample]) -> None:
    """With a label, or with a refusal that says when to come back."""
    refused = [one for one in samples if one.status != 200]
    slowest = max(one.latency_s for one in samples)
    print(f"{len(refused)} of {len(samples)} refused, the slowest answer took {slowest:.1f} s")
    for one in refused:
        assert one.status == 503, one
        assert one.may_come_back, one
        assert one.problem.startswith("application/problem+json"), one


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "what", ["ServeReplica:worldlake:Dynamics", "ServeReplica:worldlake:Ingress", "ServeController"]
)
def test_each_request_is_answered_and_the_service_recovers(server: Server, what: str) -> None:
    victim = the(server, what)
    assert_each_is_answered(under_load(server.url, victim, server.key))
    until(lambda: any(one.pid != victim.pid for one in server.find(what)), 30)


@pytest.mark.timeout(120)
def test_a_proxy_takes_its_connections_along_and_comes_back(server: Server) -> None:
    samples = under_load(server.url, the(server, "ProxyActor"), server.key)
    lost = [one for one in samples if one.status == 0]
    assert lost
    # A connection that breaks is nothing that anybody could answer; no answer is half of one.
    assert {one.status for one in samples} <= {0, 200, 503}


@pytest.mark.timeout(120)
def test_what_is_too_much_is_refused_and_health_is_not(server: Server) -> None:
    load = Load(f"{server.url}/v1/label", bodies(BODIES), key=server.key)
    thread = threading.Thread(target=lambda: asyncio.run(load.open(200, 10)))
    thread.start()
    until(lambda: any(one.status == 503 for one in load.samples), 10)
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
    thread.join()
    assert {one.status for one in load.samples} == {200, 503}
    assert_each_is_answered(load.samples)
    again = Load(f"{server.url}/v1/label", bodies(BODIES), key=server.key)
    asyncio.run(again.closed(CLIENTS, 2))
    assert {one.status for one in again.samples} == {200}


def test_a_request_may_be_larger_than_a_batch(server: Server) -> None:
    pair = json.loads(bodies(1)[0])["pairs"]
    key = {"Authorization": f"Bearer {server.key}"}
    answer = httpx.post(f"{server.url}/v1/label", json={"pairs": pair * 32}, headers=key, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["labels"]) == 32
