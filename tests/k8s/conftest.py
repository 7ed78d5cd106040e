"""A small Ray cluster, started as KubeRay would start the manifests' own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.job_submission import JobSubmissionClient

from tests.k8s.manifests import one, overlay
from tests.seaweed import Seaweed

BIN = Path(sys.executable).parent


@dataclass
class RayCluster:
    """A head and a worker of Ray, on this machine, started as KubeRay would for the manifest."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def job(self, entrypoint: str) -> str:
        """Submit an entrypoint, with the commands of this environment on its path."""
        submitted: str = self.client.submit_job(entrypoint=f"PATH={BIN}:$PATH {entrypoint}")
        return submitted

    def end(self, job: str) -> Any:
        until = time.monotonic() + 240
        while not self.client.get_job_status(job).is_terminal():
            assert time.monotonic() < until, self.client.get_job_logs(job)
            time.sleep(0.3)
        return self.client.get_job_info(job)

    @property
    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(
            self.dashboard, headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, seaweed: Seaweed) -> Iterator[RayCluster]:
    gcs, dashboard, *agents = free_ports(4)
    folder = tmp_path_factory.mktemp("ray")
    objects = overlay("local")
    head = one(objects, "RayJob", "worldlake-label")["spec"]["rayClusterSpec"]["headGroupSpec"]
    serving = one(objects, "RayService", "worldlake-serve")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    (container,) = head["template"]["spec"]["containers"]
    environment = {
        **os.environ,
        # As the containers have it: from the ConfigMap, and of their own. The store is where this machine has one.
        **one(objects, "ConfigMap", "worldlake-environment")["data"],
        **{variable["name"]: variable["value"] for variable in container["env"]},
        **seaweed.environment,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(16).hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    params = [f"--{key}={value}" for key, value in head["rayStartParams"].items()]
    cores = serving["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    small = ["--object-store-memory=200000000", "--block"]
    lines = [
        ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1", *params],
        [f"--address=127.0.0.1:{gcs}", f"--num-cpus={cores}"],
    ]
    # Short: Ray's sockets have names of at most 107 characters.
    temporary = tempfile.mkdtemp(prefix="wl", dir="/tmp")
    lines[0].append(f"--temp-dir={temporary}")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for line, agent, name in zip(lines, agents, ("head-pod", "worker-pod"), strict=True):
            command = [BIN / "ray", "start", *line, f"--dashboard-agent-listen-port={agent}", *small]
            with (folder / name).open("wb") as log:
                started.append(
                    subprocess.Popen(
                        command,
                        env=environment | {"RAY_CLOUD_INSTANCE_ID": name},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            _wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        _wait_for(f"http://127.0.0.1:{dashboard}/api/gcs_healthz")
        yield RayCluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for left in psutil.process_iter(["cmdline"]):
            if any(f"{temporary}/" in word for word in left.info["cmdline"] or ()):
                left.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def _wait_for(url: str) -> None:
    until = time.monotonic() + 90
    while True:
        try:
            # Without a token, as a kubelet asks.
            assert urllib.request.urlopen(url, timeout=5).status == 200
            return
        except OSError:
            assert time.monotonic() < until, url
            time.sleep(0.3)
