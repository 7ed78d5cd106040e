"""The monitoring component: what it adds, that its rules fire when they should, and that its dashboards fit Grafana.

There is no schema of monitoring.coreos.com at hand, nor a Grafana: what is said here of PodMonitor, PrometheusRule and
dashboards is what we know of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from lake import metrics
from tests.k8s.manifests import OVERLAYS, ROOT, Object, one, overlay, pod_templates, validate
from tests.k8s.monitoring import (
    COMPONENT,
    alert_expressions,
    dashboards,
    metric_names,
    monitored,
    panel_expressions,
    rules,
)
from tests.k8s.policy import complaints

OPERATOR = "monitoring.coreos.com/v1"
DOCS = ROOT / "docs/how-to/observability.md"


def test_only_who_switches_it_on_needs_the_operator() -> None:
    for name in OVERLAYS:
        assert all(item["apiVersion"] != OPERATOR for item in overlay(name))


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_component_fits_every_overlay(name: str, tmp_path: Path) -> None:
    objects = monitored(name, tmp_path)
    assert complaints(objects) == []
    added = [item for item in objects if item not in overlay(name)]
    assert sorted(item["kind"] for item in added) == ["ConfigMap", "NetworkPolicy", "PodMonitor", "PrometheusRule"]
    for item in added:
        assert item["metadata"]["namespace"] == "worldlake"
        if item["apiVersion"] == OPERATOR:
            assert item.keys() == {"apiVersion", "kind", "metadata", "spec"}
        else:
            validate(item)
    # Found by their label, and not under a new name after each change.
    boards = one(added, "ConfigMap", "worldlake-dashboards")
    assert boards["metadata"]["name"] == "worldlake-dashboards"
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(boards["data"]) == len(dashboards())


def test_every_pod_of_ray_is_scraped_where_it_exports(tmp_path: Path) -> None:
    objects = monitored("gpu", tmp_path)
    monitor = one(objects, "PodMonitor", "worldlake")["spec"]
    assert monitor.keys() == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    [endpoint] = monitor["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "interval", "metricRelabelings"}
    policy = one(objects, "NetworkPolicy", "scrape")["spec"]
    # The label that KubeRay gives to every pod of Ray.
    assert monitor["selector"] == policy["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    [opened] = policy["ingress"][0]["ports"]
    for where, template in (pair for item in objects for pair in pod_templates(item)):
        ports = {
            port["name"]: port["containerPort"] for c in template["spec"]["containers"] for port in c.get("ports", [])
        }
        if where.startswith("Ray") and not where.endswith("submitter"):
            assert ports[endpoint["port"]] == opened["port"], where


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rules(), sort_keys=False))
    return path


def test_alerts_fire_when_they_should_and_only_then(rule_file: Path) -> None:
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        shutil.copy(Path(__file__).with_name("rules_test.yaml"), rule_file.parent)
        done = subprocess.run(["promtool", *command], cwd=rule_file.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# Bounds that nothing passes, and none at all, or a shorter memory: what the unit tests say then.
NEVER = (
    ("> 1800", "> 18000"),
    ("< 0.5", "< 0.01"),
    ("> 5\n", "> 5000\n"),
    ("> 50\n", "> 5000\n"),
    ("> 30\n", "> 300\n"),
)
ALWAYS = (
    ("[5m])) > 1800", "[1m])) > 1800"),
    ("> 500", "> 5"),
    ("> 0.05", "> 0.005"),
    ("<= 2 *", "<= 0 *"),
    ("> 5\n", "> 0\n"),
)


@pytest.mark.parametrize(("changes", "failing"), [(NEVER, 5), (ALWAYS, 3)])
def test_the_tests_of_alerts_can_fail(rule_file: Path, changes: tuple[tuple[str, str], ...], failing: int) -> None:
    text = (COMPONENT / "rules.yaml").read_text()
    for bound, other in changes:
        assert bound in text
        text = text.replace(bound, other)
    rule_file.write_text(yaml.safe_dump(yaml.safe_load(text)["spec"]))
    shutil.copy(Path(__file__).with_name("rules_test.yaml"), rule_file.parent)
    command = ["promtool", "test", "rules", "rules_test.yaml"]
    done = subprocess.run(command, cwd=rule_file.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(set(re.findall(r"^ +name: (.*)", done.stdout + done.stderr, re.MULTILINE))) == failing


def test_every_alert_has_a_test_and_a_runbook() -> None:
    tested = {
        case["alertname"]
        for group in yaml.safe_load(Path(__file__).with_name("rules_test.yaml").read_text())["tests"]
        for case in group["alert_rule_test"]
    }
    headings = {line.lstrip("# ").strip().lower() for line in DOCS.read_text().splitlines() if line.startswith("#")}
    alerts = [rule for group in rules()["groups"] for rule in group["rules"]]
    assert tested == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/how-to/observability.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings


def test_names_are_read_out_of_expressions() -> None:
    expression = (
        'histogram_quantile(0.9, sum by (le, namespace) (rate(a_bucket{x="b_total", le=~"c|d"}[5m]))) > 30\n'
        "unless on (ray_io_cluster) max_over_time(e:f[1h] offset 30m) / ignoring(g) group_left (h) i <= bool 1e3 and j"
    )
    assert metric_names(expression) == {"a_bucket", "e:f", "i", "j"}


def test_no_expression_names_a_metric_of_ours_that_there_is_not() -> None:
    parts = {"histogram": ("_bucket", "_count")}
    ours = {f"ray_{m.name}{part}" for m in metrics.ALL for part in parts.get(m.kind, ("",))}
    named = {name for text in [*panel_expressions(), *alert_expressions()] for name in metric_names(text)}
    assert {name for name in named if name.startswith("ray_worldlake_")} <= ours
    # And none is counted that nobody looks at.
    assert {name.removesuffix("_bucket") for name in named} >= {f"ray_{m.name}" for m in metrics.ALL}


@pytest.mark.parametrize("name", dashboards())
def test_grafana_could_show_the_dashboard(name: str) -> None:
    board = dashboards()[name]
    assert board["uid"] == f"worldlake-{name}"
    assert isinstance(board["schemaVersion"], int)
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert variables == {"datasource": "datasource", "namespace": "query"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        _check_panel(panel, set(variables))
    for one_, other in combinations(board["panels"], 2):
        assert not _overlap(one_["gridPos"], other["gridPos"]), (one_["title"], other["title"])


def _check_panel(panel: Object, variables: set[str]) -> None:
    assert panel["type"] == "timeseries"
    assert panel["title"]
    assert panel["description"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    place = panel["gridPos"]
    assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    assert 0 <= place["y"] < place["y"] + place["h"]
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == source
        assert metric_names(target["expr"])
        assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= variables


def _overlap(one_: dict[str, Any], other: dict[str, Any]) -> bool:
    def apart(start: str, length: str) -> bool:
        return bool(one_[start] + one_[length] <= other[start] or other[start] + other[length] <= one_[start])

    return not apart("x", "w") and not apart("y", "h")
