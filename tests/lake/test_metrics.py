"""Metrics where there is no Ray, and what counts as what. With a Ray and a Prometheus: tests/k8s/test_scrape.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from lake import runs, s3
from lake.metrics import ALL, MODEL_SECONDS, PAIRS, Metric
from lake.runs import Run
from lake.tables import Lake
from tests.runs import wait_until

Recorded = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found: Recorded = []
    monkeypatch.setattr(Metric, "record", lambda self, value, **labels: found.append((self.name, value, labels)))
    return found


def test_ray_is_not_loaded_for_a_metric() -> None:
    program = "import sys, lake.metrics as m; m.PAIRS.record(1, outcome='failed'); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_whatever_ray_does_no_metric_raises(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def is_initialized() -> bool:
            raise RuntimeError("no core worker")

    for ray in (object(), Broken):
        monkeypatch.setitem(sys.modules, "ray", ray)
        metric.record(1.0, **dict.fromkeys(metric.labels, "x"))


def test_time_counts_also_when_it_was_in_vain(recorded: Recorded) -> None:
    with pytest.raises(ValueError, match="vain"), MODEL_SECONDS.timed(source="label"):
        raise ValueError("in vain")
    [(name, seconds, labels)] = recorded
    assert (name, labels) == (MODEL_SECONDS.name, {"source": "label"})
    assert seconds > 0


def _answer(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_answer("AccessDenied", 403), [("worldlake_s3_errors_total", 1, {"error": "AccessDenied"})]),
        (_answer("NoSuchKey", 404), []),
        (_answer("PreconditionFailed", 412), []),
        (FileNotFoundError("a local file"), []),
    ],
    ids=["denied", "not there", "another one", "no store"],
)
def test_that_an_object_is_not_there_is_no_error_of_the_store(
    error: Exception, told: Recorded, recorded: Recorded
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        s3.patiently(fail)
    assert recorded == told


def test_a_store_that_comes_back_was_asked_again(recorded: Recorded) -> None:
    answers = iter([ConnectionError("away"), None])

    def ask() -> str:
        if error := next(answers):
            raise error
        return "there"

    assert s3.patiently(ask) == "there"
    assert recorded == [("worldlake_s3_retries_total", 1, {})]


def test_a_run_is_idle_until_it_counts(tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.05)
    lake = Lake(str(tmp_path))
    lake.create()

    def idle() -> list[float]:
        assert {(name, labels["kind"]) for name, _, labels in recorded} <= {("worldlake_run_idle_seconds", "label")}
        return [seconds for _, seconds, _ in recorded]

    with Run(lake, "run", "label", {}) as run:
        wait_until(lambda: idle() and idle()[-1] > 0.2)
        run.counts["accepted"] = 1
        wait_until(lambda: min(idle()[-2:]) < 0.2)


def test_a_counter_takes_no_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            asked.append("yes")
            return False

    monkeypatch.setitem(sys.modules, "ray", Ray)
    PAIRS.record(0, outcome="failed")
    assert asked == []
