"""A Prometheus that scrapes a running Ray finds what dashboards and alerts name; what is logged meanwhile is JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.conftest import free_ports
from tests.k8s.manifests import ROOT
from tests.k8s.monitoring import alert_expressions, metric_names, panel_expressions, rules

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.alone]


@dataclass(frozen=True)
class Watched:
    """A Prometheus that has seen it all, and what was logged, by the driver and by the other processes."""

    url: str
    driver: list[dict[str, Any]]
    workers: list[dict[str, Any]]

    def ask(self, path: str, **query: str) -> Any:
        answer = urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30)
        return json.load(answer)["data"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("watched")
    web, export = free_ports(2)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
    scrape = {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{export}"]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        prometheus = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{web}"], stdout=log, stderr=log)
    # Short: Ray's sockets have names of at most 107 characters.
    temporary = tempfile.mkdtemp(prefix="wl", dir="/tmp")
    environment = os.environ | {
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_LOGGING_CONFIG_ENCODING": "JSON",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "WATCHED_TEMP": temporary,
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.k8s.watched", str(folder), str(export)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
        logs = Path(temporary, "session_latest", "logs").glob("worker-*.err")
        workers = [line for path in logs for line in path.read_text().splitlines()]
        yield Watched(f"http://127.0.0.1:{web}", _json(done.stderr.splitlines()), _json(workers))
    finally:
        prometheus.kill()
        prometheus.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _json(lines: list[str]) -> list[dict[str, Any]]:
    """Those that are JSON; Ray's C++ writes text."""
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_everything_that_is_named_is_there(watched: Watched) -> None:
    named = {name for text in [*panel_expressions(), *alert_expressions()] for name in metric_names(text)}
    since = str(time.time() - 600)
    missing = {name for name in named if not watched.ask("series", **{"match[]": name, "start": since})}
    assert missing == set()


def test_prometheus_takes_every_expression(watched: Watched) -> None:
    for expression in panel_expressions():
        text = expression.replace("$namespace", ".*").replace("$__rate_interval", "1m")
        assert "result" in watched.ask("query", query=text)
    [group] = watched.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}


def test_what_was_counted_is_what_happened(watched: Watched) -> None:
    def outcomes(metric: str) -> dict[str, float]:
        found = watched.ask("query", query=f"sum by (outcome) (last_over_time({metric}[10m]))")["result"]
        return {one["metric"]["outcome"]: float(one["value"][1]) for one in found}

    assert outcomes("ray_worldlake_videos_total") == {"finished": 1, "failed": 1}
    pairs = outcomes("ray_worldlake_pairs_total")
    assert pairs["sampled"] == pairs["labeled"] == pairs.get("accepted", 0) + pairs.get("rejected", 0) > 0


def test_log_lines_say_which_run_and_which_video(watched: Watched) -> None:
    of = {line["message"].partition(":")[0]: line for line in watched.driver}
    run, finished, failed = of["run begins"]["run_id"], of["video finished"], of["failure"]
    assert of["run ends"]["run_id"] == finished["run_id"] == failed["run_id"] == run
    assert finished["video_id"] != failed["video_id"]
    assert failed["error_type"] == "SourceChanged"
    sampled = [line for line in watched.workers if line["message"] == "sampling ends"]
    assert [(line["run_id"], line["video_id"]) for line in sampled] == [(run, finished["video_id"])]
    [lost] = [line for line in watched.workers if line["message"] == "sampling failed"]
    assert (lost["run_id"], lost["video_id"]) == (run, failed["video_id"])
    assert "SourceChanged" in lost["exc_text"]
    # So are the command's own lines.
    assert of["commit of failures failed, trying again in 0.2 s"]["run_id"] == "watched"
