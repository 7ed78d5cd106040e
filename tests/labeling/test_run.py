"""A run refuses wrong input before anything is labeled."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

import worldlake
from labeling.labeler import Labeler, LabelerSettings
from labeling.pipeline import workers
from labeling.policy import load_policy
from labeling.run import _cause, label
from labeling.settings import RunSettings
from lake.errors import ModelRefused, Refused, Unavailable
from lake.runs import Run, states
from lake.tables import Lake, now
from lake.writer import Writer
from sample_world.clips import write_folder
from tests.runs import rows


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    Writer(lake).append("videos", [{"video_id": "v", "uri": "/nowhere.mp4", "etag": "1-1", "added_at": now()}])
    labeler = Labeler(LabelerSettings(), 64, {"model": {}, "decoder": "pyav"})
    rivals = ExitStack()

    def start_rival() -> None:
        rivals.enter_context(Run(lake, "rival", "label", {}, labeler.id, alone=True))

    monkeypatch.setattr("labeling.run.start_ray", start_rival)
    with rivals, pytest.raises(Refused, match="rival of labeler"):
        # No other run is live when the run looks for the first time; Ray takes seconds to start.
        label(lake, labeler, load_policy("default"), RunSettings(), stop=threading.Event())
    assert sorted((run.run_id == "rival", run.status) for run in states(lake)) == [
        (False, "refused"),
        (True, "finished"),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "the lake holds no video"),
        ({"stage": "probe", "uri": "/broken.mp4"}, "no video could be read"),
        (
            {"stage": "read", "scope": "video", "video_id": "v", "transient": False, "attempt": 1},
            "but for 1 that failed",
        ),
    ],
)
def test_a_run_without_work_says_why(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    labeler = Labeler(LabelerSettings(), 64, {"model": {}, "decoder": "pyav"})
    if "video_id" in row:
        Writer(lake).append("videos", [{"video_id": "v", "uri": "/nowhere.mp4", "etag": "1-1", "added_at": now()}])
    if row:
        Writer(lake).append("failures", [{"labeler_id": labeler.id, **row, "failed_at": now()}])
    summary = label(lake, labeler, load_policy("default"), RunSettings(), stop=threading.Event())
    assert (summary.status, summary.text().startswith("nothing to do: "), why in summary.text()) == (
        "nothing to do",
        True,
        True,
    )


@pytest.mark.parametrize("kind", [ModelRefused, Refused, Unavailable])
def test_what_a_worker_refuses_keeps_its_class_and_loses_the_advice_of_ray(kind: type[Exception]) -> None:
    raised = _cause(RayTaskError("load", "a traceback", kind("no folder\nadvice")).as_instanceof_cause())
    assert type(raised) is kind
    assert str(raised) == "no folder"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_as_beside_a_gpu_processes_of_their_own_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "videos", [7_200_000])
    lake = Lake(str(tmp_path / "lake"))
    worldlake.ingest(lake, str(tmp_path / "videos"))
    monkeypatch.setattr("labeling.run.workers", lambda *asked: replace(workers(*asked), write=1))
    summary = worldlake.label(lake)
    assert summary.status == "finished"
    assert summary.counts["accepted"] == rows(lake, "triples") > 0
