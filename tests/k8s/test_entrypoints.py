"""worldlake accepts the commands of the manifests."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import UnknownOptionError
from ray.serve.schema import ServeDeploySchema

from tests.k8s.manifests import OVERLAYS, Object, one, overlay
from worldlake.cli import app


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
