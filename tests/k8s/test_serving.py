"""The service, as KubeRay has Ray Serve start it."""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from lake.tables import Lake
from serve.keys import Keys
from tests.k8s.conftest import RayCluster, free_ports
from tests.k8s.manifests import one, overlay
from tests.lake.filled import fill


@pytest.mark.ray
@pytest.mark.alone
@pytest.mark.long
@pytest.mark.timeout(900)
def test_ray_serve_keeps_the_service_up(cluster: RayCluster, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    (tmp_path / "serve.yaml").write_text(f"lake: {lake.uri}\nmodel: builtin\nworld: builtin\n")
    config = yaml.safe_load(one(overlay("local"), "RayService", "worldlake-serve")["spec"]["serveConfigV2"])
    (port,) = free_ports(1)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] = {"config": str(tmp_path / "serve.yaml")}
    key = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
    url = f"{cluster.dashboard}/api/serve/applications/"
    put = urllib.request.Request(url, json.dumps(config).encode(), key, method="PUT")
    assert urllib.request.urlopen(put, timeout=60).status == 200
    # Neither a lake nor a key is there, as after the first `kubectl apply`: it waits for both.
    until = time.monotonic() + 20
    while time.monotonic() < until:
        assert _application(url, key).get("status") in (None, "NOT_STARTED", "DEPLOYING")
        time.sleep(1)
    fill(lake)
    _, token = Keys(lake).create("test", ("read",))
    until = time.monotonic() + 600
    while (found := _application(url, key)).get("status") != "RUNNING":
        assert found.get("status") != "DEPLOY_FAILED", found["message"]
        assert time.monotonic() < until, found
        time.sleep(1)
    # What asks for a core does not run on the head, which has none.
    listed = {deployment["name"] for deployment in config["applications"][0]["deployments"]}
    assert listed <= found["deployments"].keys()
    placed = {replica["node_id"] for name in listed for replica in found["deployments"][name]["replicas"]}
    assert len(placed) == 1
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/labelers", headers={"Authorization": f"Bearer {token}"}
    )
    assert urllib.request.urlopen(request, timeout=30).status == 200
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/-/healthz", timeout=30).status == 200


def _application(url: str, key: dict[str, str]) -> dict[str, Any]:
    answer = json.load(urllib.request.urlopen(urllib.request.Request(url, headers=key), timeout=30))
    found: dict[str, Any] = answer["applications"].get("worldlake", {})
    return found
