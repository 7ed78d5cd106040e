"""Ray runs what the manifests start as KubeRay would have it run; nodes and heads end gracefully."""

import json
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from lake.runs import states
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.conftest import Bucket
from tests.k8s.conftest import RayCluster
from tests.k8s.manifests import ROOT, overlay
from tests.k8s.test_entrypoints import commands, configs
from worldlake.status import lake_status

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRAIN = (sys.executable, ROOT / "k8s" / "base" / "scripts" / "drain.py")


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
