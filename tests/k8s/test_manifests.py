"""Every overlay is what KubeRay's and Kubernetes' schemas allow, and what we ask; and each check can say no."""

import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.k8s.manifests import OVERLAYS, ROOT, Object, build, one, overlay, pod_templates, validate, with_defaults
from tests.k8s.policy import complaints


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_api_server_would_take_every_object(name: str) -> None:
    for item in overlay(name):
        validate(item)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_as_we_ask(name: str) -> None:
    assert complaints(overlay(name)) == []


def _label(objects: list[Object]) -> Object:
    return one(objects, "RayJob", "worldlake-label")


def _worker(objects: list[Object]) -> Object:
    spec: Object = _label(objects)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    return spec


def _set(target: Object, **fields: Any) -> None:
    target.update(fields)


# What is done to a good overlay, and what the schemas then say.
BROKEN: dict[str, tuple[Callable[[list[Object]], Any], str]] = {
    "a field that KubeRay does not know": (lambda o: _set(_label(o)["spec"], backOffLimit=1), "backOffLimit"),
    "a field deep in a Ray cluster": (
        lambda o: _set(_label(o)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0], minReplica=1),
        "minReplica",
    ),
    "a number as text": (lambda o: _set(_label(o)["spec"], backoffLimit="0"), "not of type 'integer'"),
    "a mode that there is not": (
        lambda o: _set(_label(o)["spec"]["rayClusterSpec"]["authOptions"], mode="tokens"),
        "not one of",
    ),
    "no head": (lambda o: _label(o)["spec"]["rayClusterSpec"].pop("headGroupSpec"), "headGroupSpec"),
    "a field that a pod does not have": (lambda o: _set(_worker(o)["containers"][0], resource={}), "resource"),
    "a probe without a port": (
        lambda o: _worker(o)["containers"][0]["livenessProbe"]["httpGet"].pop("port"),
        "'port' is a required property",
    ),
    "a toleration of no kind": (lambda o: _set(_worker(o), tolerations=[{"oparator": "Exists"}]), "oparator"),
    "a CronJob with a field of a Job": (
        lambda o: _set(one(o, "CronJob", "worldlake-label")["spec"], backoffLimit=1),
        "backoffLimit",
    ),
    "a policy without pods": (lambda o: _set(one(o, "NetworkPolicy", "ray")["spec"], ports=[]), "ports"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_schemas_refuse(case: str) -> None:
    objects, good = overlay("gpu"), overlay("gpu")
    spoil, said = BROKEN[case]
    spoil(objects)
    (spoilt,) = [item for item in objects if item not in good]
    with pytest.raises(jsonschema.ValidationError) as error:
        validate(spoilt)
    assert said in error.value.message


# What is done to a good overlay, and what the policy then says.
UNWANTED: dict[str, tuple[Callable[[list[Object]], Any], str]] = {
    "root": (lambda o: _worker(o)["securityContext"].pop("runAsNonRoot"), "runs as root"),
    "writable root": (
        lambda o: _worker(o)["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
        "writable root",
    ),
    "capabilities": (
        lambda o: _set(_worker(o)["containers"][0]["securityContext"], capabilities={"drop": ["NET_RAW"]}),
        "capabilities",
    ),
    "limits": (lambda o: _worker(o)["containers"][0]["resources"].pop("limits"), "no limits"),
    "latest": (lambda o: _set(_worker(o)["containers"][0], image="host:5000/worldlake:latest"), "another one tomorrow"),
    "no tag": (lambda o: _set(_worker(o)["containers"][0], image="host:5000/worldlake"), "another one tomorrow"),
    "account": (lambda o: _worker(o).pop("serviceAccountName"), "default service account"),
    "API token": (lambda o: _worker(o).pop("automountServiceAccountToken"), "needs a token"),
    "secret in the environment": (
        lambda o: _set(_worker(o)["containers"][0], env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]),
        "in plain text",
    ),
    "key in a ConfigMap": (
        lambda o: _set(one(o, "ConfigMap", "worldlake-config")["data"], **{"x": "key: AKIA" + "A" * 16}),
        "secret in plain text",
    ),
    "a Secret": (
        lambda o: o.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}),
        "made on the cluster",
    ),
    "no probes": (
        lambda o: one(o, "RayService", "worldlake-serve")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0][
            "template"
        ]["spec"]["containers"][0].pop("readinessProbe"),
        "without probes",
    ),
    "open network": (lambda o: o.remove(one(o, "NetworkPolicy", "default-deny")), "nothing denies"),
    "two at once": (
        lambda o: _set(one(o, "CronJob", "worldlake-label")["spec"], concurrencyPolicy="Allow"),
        "Forbid",
    ),
    "folder of the node": (
        lambda o: _worker(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "folder of the node",
    ),
    "open Ray": (lambda o: _label(o)["spec"]["rayClusterSpec"].pop("authOptions"), "Ray's ports are open"),
    "work on the head": (
        lambda o: _label(o)["spec"]["rayClusterSpec"]["headGroupSpec"].update(rayStartParams={}),
        "work on the head",
    ),
    "password of Redis": (
        lambda o: _set(
            one(o, "RayService", "worldlake-serve")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"],
            redisPassword={"value": "x"},
        ),
        "password of Redis",
    ),
    "pods that cannot be evicted": (
        lambda o: _set(one(o, "PodDisruptionBudget", "worldlake-serve"), spec={"maxUnavailable": 1}),
        "no pod could ever be evicted",
    ),
    "a head without probes": (
        lambda o: _label(o)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop(
            "livenessProbe"
        ),
        "without probes",
    ),
    "all rights": (
        lambda o: _set(one(o, "Role", "worldlake-launch")["rules"][0], verbs=["*"]),
        "more rights than it needs",
    ),
}


@pytest.mark.parametrize("case", UNWANTED)
def test_the_policy_complains(case: str) -> None:
    objects = overlay("gpu")
    spoil, said = UNWANTED[case]
    spoil(objects)
    found = complaints(objects)
    assert found
    assert all(said in complaint for complaint in found)


def test_a_patch_for_what_is_not_there_fails(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    patch = tmp_path / "k8s" / "overlays" / "spot" / "label.yaml"
    patch.write_text("- {op: replace, path: /spec/rayClusterSpec/workerGroupSpecs/9/replicas, value: 1}\n")
    with pytest.raises(AssertionError, match="workerGroupSpecs/9"):
        build(tmp_path / "k8s" / "overlays" / "spot")


def test_the_overlay_of_the_docs_is_as_good(tmp_path: Path) -> None:
    blocks = re.findall(r"^( *)```yaml\n(.*?)^ *```", (ROOT / "docs/how-to/kubernetes.md").read_text(), re.M | re.S)
    overlay_of_mine, *patches = (yaml.safe_load(textwrap.dedent(text)) for _, text in blocks)
    assert len(patches) == 2
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    mine = tmp_path / "k8s" / "overlays" / "mine"
    for configs in ("base", "overlays/gpu"):
        shutil.copytree(tmp_path / "k8s" / configs / "config", mine, dirs_exist_ok=True)
    overlay_of_mine["patches"] += [patch for block in patches for patch in block]
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(overlay_of_mine))
    objects = build(mine)
    for item in objects:
        validate(item)
    assert complaints(objects) == []
    groups = _label(objects)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    shared = [
        group["groupName"]
        for group in groups
        for volume in group["template"]["spec"]["volumes"]
        if volume["name"] == "cache" and "persistentVolumeClaim" in volume
    ]
    assert shared == ["label"]


def test_defaults_are_filled_in() -> None:
    schema = {"properties": {"a": {"items": {"properties": {"b": {"type": "integer", "default": 3}}}}}}
    assert with_defaults({"a": [{}, {"b": 1}]}, schema) == {"a": [{"b": 3}, {"b": 1}]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_that_is_named_is_there(name: str) -> None:
    objects = overlay(name)
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for _, template in (pair for item in objects for pair in pod_templates(item)):
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in there
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
        for container in spec["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for source in container.get("envFrom", []):
                assert "secretRef" in source or ("ConfigMap", source["configMapRef"]["name"]) in there


def test_a_policy_for_every_label_that_policies_select() -> None:
    objects = overlay("gpu")
    labels = {
        pair for item in objects for _, pod in pod_templates(item) for pair in pod["metadata"].get("labels", {}).items()
    }
    # KubeRay's own label on what it starts, and those of namespaces that are not ours.
    given = labels | {("ray.io/is-ray-node", "yes")}
    for item in objects:
        if item["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = item["spec"].get("podSelector") or item["spec"].get("selector", {})
            assert set(selector.get("matchLabels", {}).items()) <= given, item["metadata"]["name"]


def test_workers_stop_after_their_drain() -> None:
    for name in OVERLAYS:
        for item in overlay(name):
            for where, template in pod_templates(item):
                hook = template["spec"]["containers"][0].get("lifecycle")
                if hook:
                    seconds = int(hook["preStop"]["exec"]["command"][-1])
                    # Ray gives its processes thirty seconds once it is told to leave.
                    assert template["spec"]["terminationGracePeriodSeconds"] >= seconds + 45, where


def test_the_version_of_the_image_is_that_of_the_package() -> None:
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    number = version.split('"')[1]
    for name in OVERLAYS:
        images = {
            c["image"] for item in overlay(name) for _, pod in pod_templates(item) for c in pod["spec"]["containers"]
        }
        assert images == {f"worldlake:{number}-{'cpu' if name == 'local' else 'cuda'}"}
    assert f"org.opencontainers.image.version={number}-" in (ROOT / "k8s" / "Containerfile").read_text()


def test_the_version_of_ray_is_the_installed_one() -> None:
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    for item in overlay("gpu"):
        for key in ("rayClusterSpec", "rayClusterConfig"):
            if key in item.get("spec", {}):
                assert f"ray=={item['spec'][key]['rayVersion']}" == pinned


def test_what_is_refused_is_not_tried_again() -> None:
    objects = overlay("gpu")
    for name in ("label", "train"):
        assert one(objects, "RayJob", f"worldlake-{name}")["spec"]["backoffLimit"] == 0
    for name in ("label", "train", "maintain"):
        spec = one(objects, "CronJob", f"worldlake-{name}")["spec"]["jobTemplate"]["spec"]
        assert {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}} in spec["podFailurePolicy"][
            "rules"
        ]
        # Kubernetes looks at exit codes only of pods that are not restarted where they are.
        assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_yaml_of_the_base_has_no_key_twice() -> None:
    from worldlake.config import _Loader

    for path in sorted((ROOT / "k8s").rglob("*.yaml")):
        for _ in yaml.load_all(path.read_text(), _Loader):
            pass
