"""A service on several nodes, of which one dies under load."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from lake.tables import Lake
from serve.keys import Keys
from tests.cluster.nodes import HOST, RAY, Node, Nodes
from tests.faults.test_serve_kills import assert_each_is_answered, under_load, until
from tests.k8s.manifests import one, overlay
from tests.seaweed import Seaweed
from tests.serve.test_live import wait_until_ready
from tests.worldlake.command import PROGRAM

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(900)]

PORT = 8000


def test_a_worker_node_is_killed_under_load(nodes: Nodes, store: Seaweed, tmp_path: Path) -> None:
    assert nodes.head is not None
    store.client().create_bucket(Bucket="served")
    lake = Lake("s3://served")
    lake.create()
    _, key = Keys(lake).create("clients", ("label",), per_minute=1_000_000)
    command = nodes.driver(PROGRAM, "serve", "--lake", lake.uri, "--host", "0.0.0.0", "--port", str(PORT))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--world", "none", "--replicas", "2"],
            stdout=log,
            stderr=log,
            env={**os.environ, **RAY, "RAY_ADDRESS": nodes.address},
            start_new_session=True,
        )
    url = f"http://{nodes.head.address}:{PORT}"
    try:
        wait_until_ready(process, url, tmp_path / "log")
        victim = max(nodes.workers, key=lambda node: node.runs("ServeReplica:worldlake"))
        assert victim.runs("ServeReplica:worldlake")
        assert_each_is_answered(under_load(url, victim, key, 180))
        left = [nodes.head, *(node for node in nodes.workers if node is not victim)]
        # Two models, an ingress and a writer, as before.
        until(lambda: sum(node.runs("ServeReplica:worldlake") for node in left) == 4, 120)
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        process.kill()
        process.wait()


REDIS_PORT = 6380


@pytest.fixture
def redis(bridge: Nodes, tmp_path: Path) -> Iterator[str]:
    """Where the head of a RayService keeps its state: a Redis that outlives it."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing (Debian: apt-get install redis-server)")
    command = ["redis-server", "--bind", HOST, "--port", str(REDIS_PORT), "--save", "", "--requirepass", "secret"]
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    yield f"{HOST}:{REDIS_PORT}"
    process.kill()
    process.wait()


class Restarted:
    """A head that is killed, is away for a while, and comes back as KubeRay would have it."""

    def __init__(self, nodes: Nodes, redis: str) -> None:
        self._nodes, self._redis = nodes, redis
        self.away = (0.0, 0.0)

    def start(self) -> Node:
        # As KubeRay has it from `gcsFaultToleranceOptions`.
        return self._nodes.start_head(
            "--include-dashboard=true",
            "--dashboard-host=0.0.0.0",
            "--redis-password=secret",
            RAY_REDIS_ADDRESS=self._redis,
            RAY_external_storage_namespace="worldlake",
        )

    def kill(self) -> None:
        assert self._nodes.head is not None
        self._nodes.head.kill()
        gone = time.monotonic()
        time.sleep(15)
        self.away = (gone, time.monotonic())
        self.start()


def test_the_head_is_killed_under_load(bridge: Nodes, redis: str, store: Seaweed, tmp_path: Path) -> None:
    bridge.stop()
    head = Restarted(bridge, redis)
    api = f"http://{head.start().address}:8265/api/serve/applications/"
    for _ in range(2):
        bridge.add_worker("--num-cpus=4", RAY_gcs_rpc_server_reconnect_timeout_s="600")
    store.client().create_bucket(Bucket="headless")
    lake = Lake("s3://headless")
    lake.create()
    _, key = Keys(lake).create("clients", ("label",), per_minute=1_000_000)
    (tmp_path / "serve.yaml").write_text(f"lake: {lake.uri}\nmodel: builtin\nworld: builtin\n")
    config = yaml.safe_load(one(overlay("local"), "RayService", "worldlake-serve")["spec"]["serveConfigV2"])
    config["applications"][0]["args"] = {"config": str(tmp_path / "serve.yaml")}

    def is_up() -> bool:
        try:
            found = httpx.get(api, timeout=30).json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(found["applications"].get("worldlake", {}).get("status") == "RUNNING")

    try:
        until(lambda: _accepts(api, config), 120)
        until(is_up, 180)
        # Kubernetes sends requests to workers only.
        url = f"http://{bridge.workers[0].address}:{PORT}"
        began = time.monotonic()
        samples = under_load(url, head, key, 180)
        assert_each_is_answered(samples)
        gone, back = (moment - began for moment in head.away)
        meanwhile = [sample for sample in samples if gone + 3 < sample.sent_s < back - 3]
        assert len(meanwhile) > 10
        assert {sample.status for sample in meanwhile} == {200}
        until(is_up, 120)
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        bridge.stop()


def _accepts(api: str, config: object) -> bool:
    try:
        return httpx.put(api, json=config, timeout=60).status_code == 200
    except httpx.HTTPError:
        return False
