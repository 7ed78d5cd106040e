"""A service on several nodes, of which one dies under load."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx
import pytest

from bench.serving.servers import Server
from lake.tables import Lake
from serve.keys import Keys
from tests.cluster.nodes import RAY, Nodes
from tests.faults.test_serve_kills import assert_each_is_answered, under_load, until
from tests.seaweed import Seaweed
from tests.serve.test_live import wait_until_ready
from tests.worldlake.command import PROGRAM

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

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
    service = Server("worldlake", f"http://{nodes.head.address}:{PORT}", process, tmp_path / "log")
    try:
        wait_until_ready(process, service.url, tmp_path / "log")
        victim = max(nodes.workers, key=lambda node: node.runs("ServeReplica:worldlake"))
        assert victim.runs("ServeReplica:worldlake")
        assert_each_is_answered(under_load(service, victim, 180, key))
        left = [nodes.head, *(node for node in nodes.workers if node is not victim)]
        # Two models, an ingress and a writer, as before.
        until(lambda: sum(node.runs("ServeReplica:worldlake") for node in left) == 4, 120)
        assert httpx.get(f"{service.url}/readyz").status_code == 200
    finally:
        process.kill()
        process.wait()
