"""What the manifests start, worldlake understands; and Ray runs it as KubeRay would have it run."""

import json
import os
import shlex
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
import typer
import yaml
from ray.job_submission import JobSubmissionClient
from ray.serve.schema import ServeDeploySchema

from lake.errors import Refused
from lake.tables import Lake
from models.sample_world import write_folder
from tests.k8s.manifests import OVERLAYS, ROOT, Object, one, overlay
from worldlake import serve
from worldlake.cli import app

BIN = Path(sys.executable).parent


def configs(objects: list[Object]) -> dict[str, str]:
    data: dict[str, str] = one(objects, "ConfigMap", "worldlake-config")["data"]
    return data


def commands(objects: list[Object]) -> dict[str, list[str]]:
    """Every worldlake command of an overlay, by what starts it."""
    found = {
        item["metadata"]["name"]: shlex.split(item["spec"]["entrypoint"])
        for item in objects
        if item["kind"] == "RayJob"
    }
    pod = one(objects, "CronJob", "worldlake-maintain")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found | {"worldlake-maintain": pod["containers"][0]["command"]}


def parsed(command: Any, words: list[str], folder: Path) -> dict[str, Any]:
    """The options of a command line, from its ConfigMap in a folder, as the command would see them."""
    words = [word.replace("/etc/worldlake", str(folder)) for word in words]
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    values: dict[str, Any] = command.make_context("worldlake", words).params
    return values


@pytest.mark.parametrize("name", OVERLAYS)
def test_worldlake_takes_the_options(name: str, tmp_path: Path) -> None:
    objects = overlay(name)
    for file, text in configs(objects).items():
        (tmp_path / file).write_text(text)
    for words in commands(objects).values():
        assert words[0] == "worldlake"
        values = parsed(typer.main.get_command(app), words[1:], tmp_path)
        assert values["config"].parent == tmp_path
        assert values["lake"].startswith("s3://")


def test_an_option_that_there_is_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "label.yaml").write_text("lake: s3://x/y\ndecoder-workers: 3\n")
    with pytest.raises(Refused, match="decoder-workers"):
        parsed(typer.main.get_command(app), ["label", "--config", "/etc/worldlake/label.yaml"], tmp_path)


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_serve_takes_the_configuration(name: str, tmp_path: Path) -> None:
    objects = overlay(name)
    config = yaml.safe_load(one(objects, "RayService", "worldlake-serve")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "worldlake.serving:application"
    (tmp_path / "serve.yaml").write_text(configs(objects)["serve.yaml"])
    command = typer.Typer()
    command.command()(serve.serve)
    assert set(application.args) - {"device"} == {"config"}
    parsed(typer.main.get_command(command), ["--config", application.args["config"]], tmp_path)
    # No resource that only the head has, none that nobody has.
    group = one(objects, "RayService", "worldlake-serve")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for deployment in application.deployments:
        assert deployment.ray_actor_options.num_cpus >= 0.1
        assert (deployment.ray_actor_options.num_gpus or 0) <= int(limits.get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("name", OVERLAYS)
def test_groups_can_hold_every_process_that_a_run_may_have(name: str) -> None:
    objects = overlay(name)
    values = yaml.safe_load(configs(objects)["label.yaml"])
    if "worker-cpus" not in values:
        return
    cores = gpus = 0
    for group in one(objects, "RayJob", "worldlake-label")["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cores += group["maxReplicas"] * int(group["rayStartParams"].get("num-cpus", limits["cpu"]))
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    on_cores = values["decode-workers"] + (0 if gpus else values["label-workers"])
    assert on_cores == cores
    assert values["worker-cpus"] < 1
    assert gpus in (0, values["label-workers"])


@dataclass
class RayCluster:
    """A head and a worker of Ray, on this machine, started as KubeRay would for the manifest."""

    address: str
    dashboard: str
    agents: list[int]
    environment: dict[str, str]

    def job(self, entrypoint: str) -> str:
        """Submit an entrypoint, with the commands of this environment on its path."""
        submitted: str = self.client.submit_job(entrypoint=f"PATH={BIN}:$PATH {entrypoint}")
        return submitted

    def end(self, job: str) -> Any:
        until = time.monotonic() + 120
        while not self.client.get_job_status(job).is_terminal():
            assert time.monotonic() < until, self.client.get_job_logs(job)
            time.sleep(0.3)
        return self.client.get_job_info(job)

    @property
    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(
            self.dashboard, headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        )


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    gcs, dashboard, *agents = _ports(4)
    folder = tmp_path_factory.mktemp("ray")
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(16).hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    head = one(overlay("local"), "RayJob", "worldlake-label")["spec"]["rayClusterSpec"]["headGroupSpec"]
    params = [f"--{key}={value}" for key, value in head["rayStartParams"].items()]
    small = ["--object-store-memory=200000000", "--block"]
    lines = [
        ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1", *params],
        [f"--address=127.0.0.1:{gcs}", "--num-cpus=4"],
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
        yield RayCluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", agents, environment)
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


def test_ray_runs_the_entrypoint_of_the_label_job(cluster: RayCluster, tmp_path: Path) -> None:
    objects = overlay("gpu")
    write_folder(tmp_path / "videos", [3], frames=60)
    changed = {
        "sources": [str(tmp_path / "videos")],
        "lake": str(tmp_path / "lake"),
        "model": "builtin",
        "decode-workers": 1,
        "label-workers": 1,
    }
    values = {**yaml.safe_load(configs(objects)["label.yaml"]), **changed}
    values.pop("revision")
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(values))
    entrypoint = shlex.join(commands(objects)["worldlake-label"]).replace("/etc/worldlake", str(tmp_path))
    # Refused at the same time, for want of a policy.
    done, refused = cluster.job(entrypoint), cluster.job(f"{entrypoint} --policy {tmp_path / 'none.yaml'}")
    assert cluster.end(done).driver_exit_code == 0, cluster.client.get_job_logs(done)
    assert len(Lake(str(tmp_path / "lake")).dataset("triples").to_table(columns=["triple_id"]))
    # What the script that waits for a RayJob reads the code from.
    assert "failed with exit code 2" in cluster.end(refused).message


def test_ray_is_closed_to_who_has_no_token(cluster: RayCluster) -> None:
    with pytest.raises(OSError, match="401"):
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10)


@pytest.mark.long
def test_ray_serve_keeps_the_service_up(cluster: RayCluster, tmp_path: Path) -> None:
    from serve.keys import Keys
    from tests.lake.filled import fill

    lake = fill(Lake(str(tmp_path / "lake"))).lake
    _, token = Keys(lake).create("test", ("read",))
    (tmp_path / "serve.yaml").write_text(f"lake: {lake.uri}\nmodel: builtin\nworld: builtin\n")
    config = yaml.safe_load(one(overlay("local"), "RayService", "worldlake-serve")["spec"]["serveConfigV2"])
    (port,) = _ports(1)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] = {"config": str(tmp_path / "serve.yaml")}
    key = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
    url = f"{cluster.dashboard}/api/serve/applications/"
    put = urllib.request.Request(url, json.dumps(config).encode(), key, method="PUT")
    assert urllib.request.urlopen(put, timeout=60).status == 200
    until = time.monotonic() + 240
    while (found := _application(url, key)).get("status") != "RUNNING":
        assert found.get("status") != "DEPLOY_FAILED", found["message"]
        assert time.monotonic() < until, found
        time.sleep(1)
    # Everything has a place of its own, so nothing runs on the head.
    listed = {deployment["name"] for deployment in config["applications"][0]["deployments"]}
    assert found["deployments"].keys() == listed
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/labelers", headers={"Authorization": f"Bearer {token}"}
    )
    assert urllib.request.urlopen(request, timeout=30).status == 200
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/-/healthz", timeout=30).status == 200


def _application(url: str, key: dict[str, str]) -> dict[str, Any]:
    answer = json.load(urllib.request.urlopen(urllib.request.Request(url, headers=key), timeout=30))
    found: dict[str, Any] = answer["applications"].get("worldlake", {})
    return found


_SLOW = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1)
def slow():
    time.sleep(4)
    return "done"
asked = slow.remote()
time.sleep(1)
print("asked", flush=True)
print(ray.get(asked), flush=True)
"""


def test_a_pod_that_is_stopped_finishes_what_runs(cluster: RayCluster) -> None:
    # The last one: afterwards the cluster has no worker.
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address, "RAY_CLOUD_INSTANCE_ID": "worker-pod"}
    task = subprocess.Popen([sys.executable, "-c", _SLOW], env=environment, stdout=subprocess.PIPE, text=True)
    assert task.stdout
    assert task.stdout.readline() == "asked\n"
    script = ROOT / "k8s" / "base" / "scripts" / "drain.py"
    drain = subprocess.run([sys.executable, script, "30"], env=environment, capture_output=True, text=True, timeout=60)
    assert "accepted" in drain.stdout, drain.stderr
    assert task.communicate(timeout=30)[0] == "done\n"
    # It has gone, so there is nothing to drain.
    again = subprocess.run([sys.executable, script, "30"], env=environment, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, "")
