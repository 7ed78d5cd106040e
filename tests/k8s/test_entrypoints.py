"""What the manifests start, worldlake understands; and Ray runs it as KubeRay would have it run."""

import json
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import UnknownOptionError
from ray.serve.schema import ServeDeploySchema

from lake.runs import states
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.conftest import Bucket
from tests.k8s.conftest import RayCluster
from tests.k8s.manifests import OVERLAYS, ROOT, Object, one, overlay
from worldlake.cli import app
from worldlake.status import lake_status

DRAIN = (sys.executable, ROOT / "k8s" / "base" / "scripts" / "drain.py")


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


def parsed(words: list[str], folder: Path) -> dict[str, Any]:
    """The options of a command line, from its ConfigMap in a folder, as the command would see them."""
    words = [word.replace("/etc/worldlake", str(folder)) for word in words]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return bound.arguments


@pytest.mark.parametrize("name", OVERLAYS)
def test_worldlake_takes_the_options(name: str, tmp_path: Path) -> None:
    objects = overlay(name)
    for file, text in configs(objects).items():
        (tmp_path / file).write_text(text)
    for words in commands(objects).values():
        assert words[0] == "worldlake"
        values = parsed(words[1:], tmp_path)
        assert values["config"].parent == tmp_path
        assert values["lake"].startswith("s3://")


def test_an_option_that_there_is_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "label.yaml").write_text("lake: s3://x/y\ndecoder-workers: 3\n")
    with pytest.raises(UnknownOptionError, match="decoder-workers"):
        parsed(["label", "--config", "/etc/worldlake/label.yaml"], tmp_path)


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_serve_takes_the_configuration(name: str, tmp_path: Path) -> None:
    objects = overlay(name)
    config = yaml.safe_load(one(objects, "RayService", "worldlake-serve")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "worldlake.serving:application"
    (tmp_path / "serve.yaml").write_text(configs(objects)["serve.yaml"])
    assert set(application.args) - {"device"} == {"config"}
    parsed(["serve", "--config", application.args["config"]], tmp_path)
    # No resource that only the head has, and as much of each as the workers have: at first, and when it has grown.
    group = one(objects, "RayService", "worldlake-serve")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    least, _, most = str(yaml.safe_load((tmp_path / "serve.yaml").read_text()).get("replicas", 1)).partition("-")
    for pods, models in ((group["minReplicas"], int(least)), (group["maxReplicas"], int(most or least))):
        cores = gpus = 0.0
        for deployment in application.deployments:
            assert deployment.ray_actor_options.num_cpus >= 0.1
            is_model = deployment.name in ("Dynamics", "World")
            replicas = models if is_model else max(1, deployment.model_dump(exclude_unset=True).get("num_replicas", 1))
            cores += replicas * deployment.ray_actor_options.num_cpus
            gpus += replicas * (deployment.ray_actor_options.num_gpus or 0)
        assert cores <= pods * int(limits["cpu"])
        assert gpus <= pods * int(limits.get("nvidia.com/gpu", 0))


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


def label_job(bucket: Bucket, folder: Path, videos: int) -> str:
    """The entrypoint of the label job, for a lake and videos in a bucket."""
    objects = overlay("gpu")
    for clip in write_folder(folder / "videos", range(videos), frames=60):
        bucket.put(f"videos/{clip.name}", clip)
    changed = {
        "sources": [f"{bucket.uri}/videos"],
        "lake": f"{bucket.uri}/lake",
        "model": "builtin",
        "decode-workers": 1,
        "label-workers": 1,
    }
    values = {**yaml.safe_load(configs(objects)["label.yaml"]), **changed}
    values.pop("revision")
    (folder / "label.yaml").write_text(yaml.safe_dump(values))
    return shlex.join(commands(objects)["worldlake-label"]).replace("/etc/worldlake", str(folder))


def test_ray_runs_the_entrypoint_of_the_label_job(cluster: RayCluster, bucket: Bucket, tmp_path: Path) -> None:
    entrypoint = label_job(bucket, tmp_path, 1)
    # Refused at the same time, for want of a policy.
    done, refused = cluster.job(entrypoint), cluster.job(f"{entrypoint} --policy {tmp_path / 'none.yaml'}")
    assert cluster.end(done).driver_exit_code == 0, cluster.client.get_job_logs(done)
    assert len(Lake(f"{bucket.uri}/lake").dataset("triples").to_table(columns=["triple_id"]))
    # As the ConfigMap wants it.
    lines = [json.loads(line) for line in cluster.client.get_job_logs(done).splitlines() if line.startswith("{")]
    assert {"run begins", "run ends"} <= {line["message"] for line in lines if line.get("run_id")}
    # What the script that waits for a RayJob reads the code from.
    assert "failed with exit code 2" in cluster.end(refused).message


def test_a_head_that_is_stopped_lets_its_job_drain(cluster: RayCluster, bucket: Bucket, tmp_path: Path) -> None:
    job = cluster.job(label_job(bucket, tmp_path, 60))
    until = time.monotonic() + 120
    while "run begins" not in (said := cluster.client.get_job_logs(job)):
        assert time.monotonic() < until, said
        time.sleep(0.3)
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address, "RAY_CLOUD_INSTANCE_ID": "head-pod"}
    drain = subprocess.run([*DRAIN, "90"], env=environment, capture_output=True, text=True, timeout=120)
    assert f"stop {job}: True" in drain.stdout, drain.stderr
    assert cluster.end(job).status == "STOPPED"
    (labeler,) = lake_status(Lake(f"{bucket.uri}/lake"))["labelers"]
    assert labeler["balances"]
    assert states(Lake(f"{bucket.uri}/lake"))[-1].status == "drained"


def test_ray_is_closed_to_who_has_no_token(cluster: RayCluster) -> None:
    with pytest.raises(OSError, match="401"):
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10)


_SLOW = """
import pathlib, sys, time
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1)
def slow(begun):
    pathlib.Path(begun).touch()
    time.sleep(4)
    return "done"
print(ray.get(slow.remote(sys.argv[1])))
"""


def test_a_pod_that_is_stopped_finishes_what_runs(cluster: RayCluster, tmp_path: Path) -> None:
    # The last one: afterwards the cluster has no worker.
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address, "RAY_CLOUD_INSTANCE_ID": "worker-pod"}
    begun = tmp_path / "begun"
    task = subprocess.Popen([sys.executable, "-c", _SLOW, begun], env=environment, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    command = [*DRAIN, "30"]
    drain = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "accepted" in drain.stdout, drain.stderr
    assert task.communicate(timeout=30)[0] == "done\n"
    # It has gone, so there is nothing to drain.
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, "")
