"""Laws of runs: who is alive is known from heartbeats, which leave no trace in the tables."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest

from lake import runs
from lake.errors import Refused
from lake.runs import Run, RunState, find_alive, states
from lake.tables import Lake
from tests.runs import wait_until


def anybody(run: RunState) -> bool:
    return True


@pytest.fixture
def lake(place: str) -> Lake:
    made = Lake(place)
    made.create()
    return made


def test_heartbeats_keep_a_run_alive_and_leave_the_table_alone(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.01)
    with Run(lake, "run", "label", {}, labeler_id="l") as run:
        (started,) = states(lake)
        run.counts["accepted"] = 7
        wait_until(lambda: states(lake)[0].counts == {"accepted": 7})
        state = find_alive(lake, lambda run: run.labeler_id == "l")
        assert state
        assert state.heartbeat_at > started.heartbeat_at
        wait_until(lambda: states(lake)[0].heartbeat_at > state.heartbeat_at)
        assert lake.dataset("runs").count_rows() == 1
        assert find_alive(lake, lambda run: run.labeler_id == "another") is None
    (ended,) = states(lake)
    assert (ended.status, ended.counts) == ("finished", {"accepted": 7})
    assert lake.dataset("runs").count_rows() == 2
    assert [entry for page in lake.storage.pages(lake.uri) for entry in page if "/_heartbeats/" in entry.uri] == []


def test_a_run_that_was_killed_is_known_by_its_last_heartbeat(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.01)
    killed = Run(lake, "killed", "label", {}, counts={"accepted": 3})
    killed.__enter__()
    wait_until(lambda: states(lake)[0].counts)
    killed._ended.set()
    killed._heart.join()
    monkeypatch.setattr(runs, "LIVE_FOR", runs.LIVE_FOR * 0)
    (state,) = states(lake)
    assert (state.status, state.live, state.counts) == ("running", False, {"accepted": 3})


def test_an_end_counts_more_than_a_heartbeat_that_was_left_over(lake: Lake) -> None:
    with Run(lake, "run", "label", {}):
        pass
    lake.storage.put(f"{lake.uri}/_heartbeats/run.json", b'{"heartbeat_at": "2100-01-01T00:00:00+00:00"}')
    assert states(lake)[0].status == "finished"
    assert find_alive(lake, anybody) is None


def test_a_run_that_must_be_alone_does_not_begin_beside_another_of_its_labeler(lake: Lake) -> None:
    with Run(lake, "first", "label", {}, "l", alone=True):
        with (
            pytest.raises(Refused, match=r"first of labeler l is alive.*--take-over"),
            Run(lake, "second", "label", {}, "l", alone=True),
        ):
            raise AssertionError("it began")
        with Run(lake, "taking over", "label", {}, "l"), Run(lake, "other labeler", "label", {}, "m", alone=True):
            pass
    assert {run.run_id: run.status for run in states(lake)} == {
        "first": "finished", "second": "refused", "taking over": "finished", "other labeler": "finished",
    }  # fmt: skip


def test_life_elsewhere_is_seen_by_beats_that_change_whatever_the_clocks_say(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(runs, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(runs, "LIVE_FOR", timedelta(seconds=1))
    real = runs.now
    with monkeypatch.context() as elsewhere:
        # Another container of this host: its clock is forty seconds behind, and its process is in no table of ours.
        elsewhere.setattr(runs, "now", lambda: real() - timedelta(seconds=40))
        elsewhere.setattr(runs, "_host", lambda: "this host/this boot/another namespace")
        elsewhere.setattr(os, "getpid", lambda: 2**30)
        run = Run(lake, "elsewhere", "label", {})
        run.__enter__()
        (seen,) = states(lake)
        elsewhere.setattr(runs, "_host", lambda: "this host/this boot/our namespace")
        found = find_alive(lake, anybody)
        assert found
        assert found.heartbeat_at > seen.heartbeat_at
        run._silence()
    begun = time.monotonic()
    assert find_alive(lake, anybody) is None
    assert time.monotonic() - begun >= 1
    # What was watched in vain is not watched again.
    monkeypatch.setattr(runs, "_LOOK_EVERY_S", 3600)
    assert find_alive(lake, anybody) is None


def test_an_end_counts_although_the_clock_was_set_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runs.now
    with Run(lake, "train", "train", {}) as run:
        monkeypatch.setattr(runs, "now", lambda: real() - timedelta(hours=2))
        run.status = "drained"
    assert [state.status for state in states(lake)] == ["drained"]
    # The second process of a training, on a machine whose clock is behind that of the first.
    with Run(lake, "train", "train", {}):
        assert [state.status for state in states(lake)] == ["running"]
    assert [state.status for state in states(lake)] == ["finished"]
