"""Manifests as an API server would see them, checked as strictly as can be without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("local", "gpu", "spot")
# The oldest in which everything we use is stable (podFailurePolicy), and the newest there is a schema of.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
Object = dict[str, Any]
# A package of the environment: that of Debian 12 has a kustomize that is too old.
KUBECTL = Path(sys.executable).with_name("kubectl")


def build(folder: Path) -> list[Object]:
    """Return what `kubectl apply -k` would send."""
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@lru_cache
def rendered(overlay: str) -> str:
    return json.dumps(build(ROOT / "k8s" / "overlays" / overlay))


def overlay(name: str) -> list[Object]:
    """The objects of an overlay; each caller gets its own."""
    objects: list[Object] = json.loads(rendered(name))
    return objects


def one(objects: list[Object], kind: str, name: str) -> Object:
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].startswith(name)]
    assert len(found) == 1, (kind, name, [item["metadata"]["name"] for item in objects if item["kind"] == kind])
    return found[0]


def pod_templates(item: Object) -> Iterator[tuple[str, Object]]:
    """Every pod that an object will make, by where it is described, as (place, template)."""
    spec = item.get("spec", {})
    name = f"{item['kind']}/{item['metadata']['name']}"
    if item["kind"] == "CronJob":
        yield name, spec["jobTemplate"]["spec"]["template"]
    for key in ("rayClusterSpec", "rayClusterConfig"):
        if key in spec:
            yield f"{name}/head", spec[key]["headGroupSpec"]["template"]
            for group in spec[key]["workerGroupSpecs"]:
                yield f"{name}/{group['groupName']}", group["template"]
    if "submitterPodTemplate" in spec:
        yield f"{name}/submitter", spec["submitterPodTemplate"]


def validate(item: Object) -> None:
    """Raise jsonschema.ValidationError where an API server would say no, or drop a field."""
    if item["apiVersion"].startswith("ray.io/"):
        schema = crd(item["kind"])
        # Not jsonschema.validate, which holds the schema itself against its own schema, for half a minute.
        jsonschema.Draft202012Validator(strict(schema)).validate(with_defaults(item, schema))
        # KubeRay leaves most of a pod to the API server: its own schema of pods is old, and knows no limits.
        for _, template in pod_templates(item):
            metadata = {"name": "pod", **template.get("metadata", {})}
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        return
    for version in VERSIONS:
        kubernetes_validate.validate(item, version, strict=True)


def crd(kind: str) -> Object:
    """KubeRay's own schema of a kind."""
    folder = os.environ.get("WORLDLAKE_CRD_SCHEMAS")
    if not folder:
        pytest.skip("WORLDLAKE_CRD_SCHEMAS names no folder with KubeRay's schemas (RayJob.v1.json, RayService.v1.json)")
    path = Path(folder) / f"{kind}.v1.json"
    if not path.exists():
        pytest.skip(f"WORLDLAKE_CRD_SCHEMAS={folder} has no {path.name}")
    schema: Object = json.loads(path.read_text())
    return schema


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as a JSON schema that refuses unknown fields, as `kubectl apply` does of its own accord.

    Rules in CEL (x-kubernetes-validations) are not looked at.
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in schema.items() if key not in ("properties", "default", "enum")}
    if "enum" in schema:
        made["enum"] = schema["enum"]
    if "properties" in schema:
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        made["type"] = [schema["type"], "null"]
    return made


def with_defaults(value: Any, schema: Object) -> Any:
    """A value with the defaults that the API server fills in before it looks."""
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    more = schema.get("additionalProperties")
    missing = {name: field["default"] for name, field in fields.items() if "default" in field and name not in value}
    return {
        name: with_defaults(item, fields.get(name) or (more if isinstance(more, dict) else {}))
        for name, item in {**missing, **value}.items()
    }
