"""Kill -9 the writer, a model and then the service while clients have labels written: nothing acknowledged is lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.serving.bodies import bodies
from lake.tables import Lake
from tests.faults.test_serve_kills import free_port, key_of, served, the, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.alone]

CLIENTS = 4
MORE = 2 * CLIENTS
"""Answers after a kill, of which half at most were on their way already."""
PAUSE_S = 0.2
BUSY = (503, 504)


@dataclass
class Clients:
    """Ask until they are answered, each request under a key of its own and every pair twice, at about the same time."""

    url: str
    key: str
    bodies: list[bytes]
    acknowledged: dict[int, dict[str, Any]] = field(default_factory=dict)
    ends: threading.Event = field(default_factory=threading.Event)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        with httpx.Client(timeout=60) as http:
            while not self.ends.is_set():
                number = next(self._numbers)
                while not self.ends.is_set() and (answer := self.ask(http, number)) is None:
                    time.sleep(PAUSE_S)
                if answer is not None:
                    self.acknowledged[number] = answer
                time.sleep(PAUSE_S)

    def ask(self, http: httpx.Client, number: int) -> dict[str, Any] | None:
        """The answer; None where the same request has to be sent again."""
        headers = {"Idempotency-Key": f"request {number}", "Content-Type": "application/json"}
        headers["Authorization"] = f"Bearer {self.key}"
        body = self.bodies[number // 2 % len(self.bodies)]
        try:
            answer = http.post(f"{self.url}/v1/label?write=durable", content=body, headers=headers)
        except httpx.TransportError:
            return None
        if answer.status_code in BUSY:
            return None
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def assert_each_is_there_once(lake: Lake, acknowledged: dict[int, dict[str, Any]]) -> None:
    """Acknowledged pairs are in `triples` if accepted, in `rejections` if rejected, and nothing is there twice."""
    written = {
        name: Counter(map(tuple, lake.read(name, ["triple_id", "action"]).to_pandas().to_numpy().tolist()))
        for name in ("triples", "rejections")
    }
    ids = Counter(id_ for rows in written.values() for id_, _ in rows.elements())
    assert set(ids.values()) == {1}
    for answer in acknowledged.values():
        assert answer["write"] == "durable"
        for label in answer["labels"]:
            table = {"accepted": "triples", "rejected": "rejections"}[label["verdict"]]
            assert (label["triple_id"], label["action"]) in written[table], label


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_what_is_acknowledged_is_in_the_lake_once_whatever_is_killed(tmp_path: Path, rounds: int) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    port = free_port()
    clients = Clients(f"http://127.0.0.1:{port}", key_of(tmp_path), bodies(200))

    def goes_on() -> None:
        wanted = len(clients.acknowledged) + MORE
        until(lambda: len(clients.acknowledged) >= wanted or any(one.done() for one in asking), 90)

    with ExitStack() as ending, ThreadPoolExecutor(CLIENTS) as threads:
        server = ending.enter_context(served(tmp_path, port))
        ending.callback(clients.ends.set)
        asking = [threads.submit(clients.run) for _ in range(CLIENTS)]
        for _ in range(rounds):
            for what in ("LiveWriter", "Dynamics"):
                goes_on()
                the(server, f"ServeReplica:worldlake:{what}").kill()
            goes_on()
            server.process.kill()
            server.process.wait()
            assert_each_is_there_once(lake, dict(clients.acknowledged))
            server = ending.enter_context(served(tmp_path, port))
        goes_on()
        clients.ends.set()
        for one in asking:
            one.result()
        # A client that did not hear its answer asks again, and hears the same.
        with httpx.Client(timeout=60) as http:
            for number in list(clients.acknowledged)[:: len(clients.acknowledged) // 10]:
                assert clients.ask(http, number) == clients.acknowledged[number]
    assert_each_is_there_once(lake, clients.acknowledged)


@pytest.mark.timeout(240)
def test_what_was_promised_soon_is_written_when_a_service_without_its_writer_is_told_to_end(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.create()
    acknowledged: list[str] = []
    with served(tmp_path, free_port()) as server, httpx.Client(timeout=60) as http:
        the(server, "ServeReplica:worldlake:LiveWriter").kill()
        for body in bodies(8):
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
            answer = http.post(f"{server.url}/v1/label?write=soon", content=body, headers=headers)
            assert answer.status_code == 200, answer.text
            acknowledged += [label["triple_id"] for label in answer.json()["labels"]]
        server.process.terminate()
        server.process.wait(90)
    written = [row for name in ("triples", "rejections") for row in lake.read(name, ["triple_id"]).to_pylist()]
    assert sorted(row["triple_id"] for row in written) == sorted(acknowledged)
