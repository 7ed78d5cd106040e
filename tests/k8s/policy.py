"""Requirements for our own manifests beyond those of an API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Object, pod_templates

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|ACCESS_KEY|CREDENTIAL|API_KEY)")
# The shapes of keys that people paste: of AWS, of worldlake's service, of model hubs, and of PEM files.
_SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|\bwl_[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def complaints(objects: list[Object]) -> list[str]:
    """Everything that is not as it should be, by place."""
    found: list[str] = []
    for item in objects:
        place = f"{item['kind']}/{item['metadata']['name']}"
        found += [f"{place}: {what}" for what in _object(item)]
        for where, template in pod_templates(item):
            is_ray = item["kind"].startswith("Ray") and not where.endswith("submitter")
            found += [f"{where}: {what}" for what in _pod(template, is_probed=is_ray)]
    found += _network(objects)
    return found


def _object(item: Object) -> Iterator[str]:
    if item["kind"] == "Secret":
        yield "secrets are made on the cluster, and named here"
    if item["kind"] == "CronJob" and item["spec"].get("concurrencyPolicy") != "Forbid":
        yield "two runs at once refuse each other: concurrencyPolicy Forbid"
    if item["kind"] == "PodDisruptionBudget" and not isinstance(item["spec"].get("minAvailable"), int):
        # Else Kubernetes asks the owner for how many there should be, and a RayCluster has no scale to say it.
        yield "no pod could ever be evicted: minAvailable, as a number"
    if item["kind"] in ("Role", "ClusterRole"):
        rules = item["rules"]
        if item["kind"] == "ClusterRole" or any("*" in rule["verbs"] + rule["resources"] for rule in rules):
            yield "more rights than it needs"
    for path, value in _strings(item):
        if _SECRET_VALUE.search(value):
            yield f"a secret in plain text at {path}"
    for spec in (item.get("spec", {}).get(key) for key in ("rayClusterSpec", "rayClusterConfig")):
        if spec:
            yield from _cluster(spec)


def _cluster(spec: Object) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token" or not spec["authOptions"].get("secretName"):
        yield "Ray's ports are open: authOptions with mode token and a secretName"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield 'work on the head: num-cpus "0"'
    if spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscaler of version v2"
    sidecar = {"name": "autoscaler", "image": "worldlake:0", **spec.get("autoscalerOptions", {})}
    yield from (f"autoscaler: {what}" for what in _container(sidecar))
    password = spec.get("gcsFaultToleranceOptions", {}).get("redisPassword")
    if password and "secretKeyRef" not in password.get("valueFrom", {}):
        yield "the password of Redis by secretKeyRef"


def _pod(template: Object, *, is_probed: bool) -> Iterator[str]:
    spec = template["spec"]
    yield from _identity(spec)
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            yield f"volume {volume['name']} may fill the node"
    if template.get("metadata", {}).get("labels", {}).get("app.kubernetes.io/part-of") != "worldlake":
        yield "no label for network policies"
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        yield from (f"{container['name']}: {what}" for what in _container(container))
        if is_probed and not {"readinessProbe", "livenessProbe"} <= container.keys():
            yield f"{container['name']}: without probes"


def _identity(spec: Object) -> Iterator[str]:
    security = spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "runs as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if spec.get("serviceAccountName", "default") == "default":
        yield "the default service account"
    if "automountServiceAccountToken" not in spec:
        yield "does not say whether it needs a token of the API server"


def _container(container: Object) -> Iterator[str]:
    security = container.get("securityContext", {})
    if not security.get("readOnlyRootFilesystem"):
        yield "writable root file system"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may get more rights"
    if security.get("capabilities", {}).get("drop") != ["ALL"] or security["capabilities"].get("add"):
        yield "capabilities"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= resources.get(kind, {}).keys():
            yield f"no {kind}"
    _, _, tag = container["image"].rpartition("/")[2].partition(":")
    if tag in ("", "latest") and "@sha256:" not in container["image"]:
        yield f"image {container['image']} may be another one tomorrow"
    for variable in container.get("env", []):
        if _SECRET_NAME.search(variable["name"]) and "value" in variable:
            yield f"{variable['name']} in plain text"


def _network(objects: list[Object]) -> Iterator[str]:
    policies = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    closed = [spec for spec in policies if spec["podSelector"] == {} and not {"ingress", "egress"} & spec.keys()]
    if not any(set(spec["policyTypes"]) == {"Ingress", "Egress"} for spec in closed):
        yield "NetworkPolicy: nothing denies by default"


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{path}/{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings(item, f"{path}/{number}")
