"""The monitoring component as it would be applied, and the metrics that its expressions name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import yaml

from tests.k8s.manifests import ROOT, Object, build

COMPONENT = ROOT / "k8s" / "components" / "monitoring"
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right"}


def rules() -> Object:
    """The rule file of Prometheus that the PrometheusRule holds."""
    spec: Object = yaml.safe_load((COMPONENT / "rules.yaml").read_text())["spec"]
    return spec


def dashboards() -> dict[str, Object]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((COMPONENT / "dashboards").glob("*.json"))}


def panel_expressions() -> list[str]:
    return [
        target["expr"] for board in dashboards().values() for panel in board["panels"] for target in panel["targets"]
    ]


def alert_expressions() -> list[str]:
    return [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]


def metric_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    for spent in (
        r'"[^"]*"',
        r"\{[^{}]*\}",
        r"\[[^\[\]]*\]",
        r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)",
    ):
        expression = re.sub(spent, " ", expression)
    # Functions have a parenthesis; durations begin with a digit.
    words = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", expression)
    return set(words) - _WORDS


def monitored(overlay: str, folder: Path) -> list[Object]:
    """An overlay with the component switched on, as docs/how-to/observability.md says."""
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    mine = folder / "k8s" / "overlays" / "mine"
    mine.mkdir()
    text = f"resources: [../{overlay}]\nnamespace: worldlake\ncomponents: [../../components/monitoring]\n"
    (mine / "kustomization.yaml").write_text(
        f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n{text}"
    )
    return build(mine)
