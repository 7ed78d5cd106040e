"""Kill -9 before, inside and after the commit of every table, and so between the tables of one commit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lake.commits import ORDER
from lake.tables import Lake
from tests.faults import commit_driver
from tests.faults.commit_driver import PAIRS, VIDEOS
from tests.forked import forked


def drive(lake: Lake, *death: str) -> int:
    return forked(commit_driver.main, lake.uri, *death)[0]


@pytest.mark.parametrize("table", ORDER)
@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_killed_around_a_commit(tmp_path: Path, when: str, table: str) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    assert drive(lake, when, table, "2") == -signal.SIGKILL
    assert drive(lake, when, table, "1") == -signal.SIGKILL
    assert drive(lake) == 0
    decided = [
        id_ for name in ("triples", "rejections") for id_ in lake.read(name, ["triple_id"])["triple_id"].to_pylist()
    ]
    assert sorted(decided) == sorted(f"v{video}-{pair}" for video in range(VIDEOS) for pair in range(PAIRS))
    finished = lake.read("progress", ["video_id"])["video_id"].to_pylist()
    assert sorted(finished) == [f"v{video}" for video in range(VIDEOS)]
