"""Kill -9 the driver, a labeling actor, a decode process and a raylet at random moments of real runs."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lake.catalog import ingest
from lake.runs import states
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.models.tiny import save_tiny
from tests.runs import Labeling, assert_same_decisions, decisions, label, rows, wait_until
from worldlake.status import lake_status

pytestmark = pytest.mark.ray

VIDEOS = 72
ROLES = ("driver", "raylet", "label", "decode")
# The long suite continues until this many processes were killed.
LONG_KILLS = int(os.environ.get("WORLDLAKE_KILLS", "200"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for clip in write_folder(folder, range(40_000, 40_024)):
        for copy in range(VIDEOS // 24 - 1):
            # Another uri is another video; a run long enough to be killed in the middle need not take long to make.
            os.link(clip, folder / f"{clip.stem}-{copy}.mp4")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("model"))


def new_lake(folder: Path, videos: Path) -> Lake:
    lake = Lake(str(folder))
    ingest(lake, [str(videos)], layout="folder")
    return lake


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, videos: Path, model: Path, ray_cluster: str
) -> dict[str, list[dict[str, Any]]]:
    lake = new_lake(tmp_path_factory.mktemp("undisturbed"), videos)
    code, output = label(lake.uri, model, "--decode-workers", "2", "--label-workers", "2", RAY_ADDRESS=ray_cluster)
    assert code == 0, output
    found = decisions(lake)
    assert len(found["triples"]) > 10
    assert len(found["rejections"]) > 10
    return found


def has_begun(run: Labeling, lake: Lake, rows_before: int | None) -> bool:
    """Return whether a run decodes, or, given a count, has committed more rows; or has ended."""
    if run.process.poll() is not None:
        return True
    return bool(run.find("decode")) if rows_before is None else rows(lake, "rejections") > rows_before


def disturb(lake: Lake, model: Path, roles: list[str], rng: random.Random) -> list[str]:
    """Kill one process of each role at a random moment, starting the run again when it ended; returns the killed."""
    killed = []
    run = Labeling(lake.uri, model)
    for number, role in enumerate(roles):
        if run.process.poll() == 0:
            break
        if run.process.poll() is not None:
            run.wait()
            run = Labeling(lake.uri, model)
        # Half of the kills while models load and the first videos are sampled, half while rows come in. The first one
        # is early: a run that is through cannot be killed.
        is_early = number == 0 or rng.random() < 0.5
        wait_until(partial(has_begun, run, lake, None if is_early else rows(lake, "rejections")))
        time.sleep(rng.uniform(0, 1.5))
        killed += [role] if run.kill(role) else []
    code, output = run.wait()
    for _ in range(3):
        if code == 0:
            break
        assert code in (1, -signal.SIGKILL, -signal.SIGTERM), output
        code, output = Labeling(lake.uri, model).wait()
    assert code == 0, output
    retry_what_was_killed_twice(lake, model)
    return killed


def retry_what_was_killed_twice(lake: Lake, model: Path) -> None:
    """A video whose decode process was killed on both attempts has failed, with that reason; it can be asked for."""
    failures = lake.read("failures", ["error_type", "message"]).to_pylist()
    if failures:
        assert {row["error_type"] for row in failures} == {"ChildLost"}, failures
        assert all("SIGKILL, then died of SIGKILL" in row["message"] for row in failures), failures
        code, output = Labeling(lake.uri, model, "--retry-failed").wait()
        assert code == 0, output


def check(lake: Lake, undisturbed: dict[str, list[dict[str, Any]]]) -> None:
    assert_same_decisions(lake, undisturbed)
    (labeler,) = lake_status(lake)["labelers"]
    assert labeler["balances"], labeler
    assert labeler["videos"] == {"listed": VIDEOS, "finished": VIDEOS, "failed": 0, "pending": 0}


@pytest.mark.timeout(600)
def test_a_killed_run_that_is_run_again_decides_each_pair_once(
    tmp_path: Path, videos: Path, model: Path, undisturbed: dict[str, list[dict[str, Any]]], ray_cluster: str
) -> None:
    lake = new_lake(tmp_path, videos)
    run = Labeling(lake.uri, model)
    wait_until(lambda: run.process.poll() is not None or rows(lake, "rejections"))
    assert run.kill("driver"), "the run ended before it could be killed"
    assert run.wait()[0] == -signal.SIGKILL
    code, output = label(lake.uri, model, RAY_ADDRESS=ray_cluster)
    assert code == 0, output
    check(lake, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_killed_at_random_moments(
    tmp_path: Path, videos: Path, model: Path, undisturbed: dict[str, list[dict[str, Any]]], seed: int
) -> None:
    rng = random.Random(seed)
    roles = [*ROLES]
    rng.shuffle(roles)
    lake = new_lake(tmp_path, videos)
    killed = disturb(lake, model, roles, rng)
    print("killed", killed, "of", roles)
    # A run that was killed late may be through before the last of them.
    assert len(killed) >= len(roles) - 1
    check(lake, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_killed_two_hundred_times(
    tmp_path: Path, videos: Path, model: Path, undisturbed: dict[str, list[dict[str, Any]]]
) -> None:
    kills = number = 0
    while kills < LONG_KILLS:
        rng = random.Random(1000 + number)
        roles = [rng.choice(["driver", "raylet", "label", "label", "decode", "decode", "sample"]) for _ in range(16)]
        lake = new_lake(tmp_path / str(number), videos)
        kills += len(disturb(lake, model, roles, rng))
        check(lake, undisturbed)
        number += 1
        print(f"{kills} kills over {number} lakes: the same decisions each time", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_run_is_refused_and_a_take_over_fences_a_paused_one(
    tmp_path: Path, videos: Path, model: Path, undisturbed: dict[str, list[dict[str, Any]]]
) -> None:
    lake = new_lake(tmp_path, videos)
    paused = Labeling(lake.uri, model)
    wait_until(lambda: paused.process.poll() is not None or any(run.kind == "label" for run in states(lake)))
    code, output = Labeling(lake.uri, model).wait()
    assert code == 2, output
    assert "--take-over" in output
    wait_until(lambda: paused.process.poll() is not None or rows(lake, "rejections"))
    assert paused.process.poll() is None, "the first run ended before it could be paused"
    os.kill(paused.process.pid, signal.SIGSTOP)
    code, output = Labeling(lake.uri, model, "--take-over").wait()
    assert code == 0, output
    check(lake, undisturbed)
    before = {name: lake.table(name).version() for name in ("triples", "rejections", "failures", "progress")}
    os.kill(paused.process.pid, signal.SIGCONT)
    code, output = paused.wait()
    assert code == 1, output
    assert "took over" in output
    assert before == {name: lake.table(name).version() for name in before}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_labelers_run_side_by_side(tmp_path: Path, videos: Path, model: Path) -> None:
    lake = new_lake(tmp_path, videos)
    both = [
        Labeling(lake.uri, model, "--limit", "8", "--uniform-stride", stride, "--method", "uniform")
        for stride in ("40", "50")
    ]
    for run in both:
        code, output = run.wait()
        assert code == 0, output
    labelers = lake_status(lake)["labelers"]
    assert len(labelers) == 2
    for labeler in labelers:
        assert labeler["balances"]
        assert labeler["videos"]["finished"] == 8
        assert labeler["pairs"]["sampled"] > 0
