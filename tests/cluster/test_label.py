"""A lake in S3 labeled by a cluster of several nodes that die, freeze, vanish for a while, come late or run full."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lake.catalog import ingest
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.cluster.nodes import RAY, Nodes
from tests.models.tiny import save_tiny
from tests.runs import Labeling, assert_same_decisions, decisions, rows, wait_until
from tests.seaweed import Seaweed
from worldlake.status import lake_status

pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(900)]

VIDEOS = 144
MULTIPLE = 6
"""No disturbed run may take longer than N undisturbed ones: a run that hangs does not survive."""
STALL = ("--stall-timeout", "45")
# Of each stage one actor on each of two nodes, so that every node is needed.
WORKERS = ("--decode-workers", "2", "--label-workers", "2", "--worker-cpus", "0.4", *STALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def footage(store: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("videos")
    store.client().create_bucket(Bucket="footage")
    for number, clip in enumerate(write_folder(folder, range(41_000, 41_012))):
        for copy in range(VIDEOS // 12):
            store.client().upload_file(str(clip), "footage", f"{number:02d}-{copy}.mp4")


def new_lake(store: Seaweed, name: str) -> Lake:
    store.client().create_bucket(Bucket=name)
    lake = Lake(f"s3://{name}")
    ingest(lake, ["s3://footage"], layout="folder")
    return lake


def label(nodes: Nodes, lake: Lake, model: Path, *options: str) -> Labeling:
    program = nodes.driver(str(Path(sys.executable).with_name("worldlake")))
    return Labeling(lake.uri, model, *(options or WORKERS), driver=program, **RAY, RAY_ADDRESS=nodes.address)


@pytest.fixture(scope="module")
def undisturbed(bridge: Nodes, store: Seaweed, model: Path) -> tuple[dict[str, list[dict[str, Any]]], float]:
    """The decisions of a run that nothing happens to, and how long it takes."""
    bridge.restart()
    lake = new_lake(store, "undisturbed")
    started = time.monotonic()
    code, output = label(bridge, lake, model).wait()
    seconds = time.monotonic() - started
    assert code == 0, output
    found = decisions(lake)
    bridge.stop()
    assert len(found["triples"]) > 10
    assert len(found["rejections"]) > 10
    return found, seconds


def disturbed(
    nodes: Nodes,
    store: Seaweed,
    model: Path,
    undisturbed: tuple[dict[str, list[dict[str, Any]]], float],
    name: str,
    disturb: Callable[[Lake, Labeling], Labeling],
    has_begun: Callable[[Lake], bool] = lambda lake: rows(lake, "rejections") > 0,
    options: tuple[str, ...] = WORKERS,
) -> None:
    """Label a lake, disturb it once it has begun, and hold the outcome against that of the undisturbed run."""
    wanted, seconds = undisturbed
    lake = new_lake(store, name)
    started = time.monotonic()
    run = label(nodes, lake, model, *options)
    wait_until(lambda: run.process.poll() is not None or has_begun(lake))
    assert run.process.poll() is None, run.wait()
    run = disturb(lake, run)
    code, output = run.wait(600)
    if code == 1 and "no sign of life" in output:
        # Fewer nodes have no room for all actors: those that are left may have taken the places of others.
        print(f"{name}: stalled")
        code, output = label(nodes, lake, model, *STALL).wait(600)
    taken = time.monotonic() - started
    assert code == 0, output
    assert_same_decisions(lake, wanted)
    (labeler,) = lake_status(lake)["labelers"]
    assert labeler["balances"], labeler
    assert labeler["videos"] == {"listed": VIDEOS, "finished": VIDEOS, "failed": 0, "pending": 0}
    print(f"{name}: {taken:.0f} s, undisturbed {seconds:.0f} s")
    assert taken < MULTIPLE * seconds + 30


def test_a_worker_node_is_killed(nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any) -> None:
    def disturb(lake: Lake, run: Labeling) -> Labeling:
        nodes.workers.pop().remove()
        return run

    disturbed(nodes, store, model, undisturbed, "killed", disturb)


def test_a_worker_node_is_cut_off_for_half_a_minute(
    nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any
) -> None:
    def disturb(lake: Lake, run: Labeling) -> Labeling:
        nodes.workers[0].cut(30)
        assert run.process.poll() is None, "it was through before the cable was back"
        return run

    disturbed(nodes, store, model, undisturbed, "cut-off", disturb)


def test_the_head_is_killed_and_the_job_is_started_again(
    nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any
) -> None:
    def disturb(lake: Lake, run: Labeling) -> Labeling:
        assert nodes.head is not None
        nodes.head.kill()
        code, _ = run.wait()
        assert code != 0
        nodes.restart()
        return label(nodes, lake, model)

    disturbed(nodes, store, model, undisturbed, "head", disturb)


def test_a_node_that_comes_late_takes_part(nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any) -> None:
    nodes.workers.pop().remove()

    def disturb(lake: Lake, run: Labeling) -> Labeling:
        late = nodes.add_worker()
        wait_until(lambda: run.process.poll() is not None or late.runs("MapBatches"))
        assert run.process.poll() is None, "it was through before the node had joined"
        return run

    # One node has room for one of the two, so that nothing can be done before the other comes.
    options = ("--decode-workers", "1", "--label-workers", "1", "--worker-cpus", "0.6")
    disturbed(
        nodes, store, model, undisturbed, "late", disturb, lambda lake: nodes.workers[0].runs("MapBatches"), options
    )


def test_a_slow_node(nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any) -> None:
    def disturb(lake: Lake, run: Labeling) -> Labeling:
        threading.Thread(target=nodes.workers[0].slow, args=(30, 0.1), daemon=True).start()
        time.sleep(3)
        assert run.process.poll() is None, "it was through before it had become slow"
        return run

    disturbed(nodes, store, model, undisturbed, "slow", disturb)


def test_each_stage_runs_on_the_nodes_that_it_is_given(
    nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any
) -> None:
    for _ in range(2):
        nodes.workers.pop().remove()
    decode, model_node = (nodes.add_worker(f"--labels=group={group}") for group in ("decode", "model"))

    def both_stages_run(_: Lake) -> bool:
        return bool(decode.runs("SampleVideos") and model_node.runs("Annotate"))

    def disturb(lake: Lake, run: Labeling) -> Labeling:
        assert not model_node.runs("SampleVideos")
        assert not decode.runs("Annotate")
        return run

    options = ("--decode-on", "group=decode", "--label-on", "group=model")
    disturbed(nodes, store, model, undisturbed, "placed", disturb, both_stages_run, options)


def test_a_node_with_a_full_disk_ends_the_run_in_one_line(
    nodes: Nodes, store: Seaweed, model: Path, undisturbed: Any, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(full)], check=True)
    try:
        nodes.workers.pop().remove()
        nodes.add_worker(TMPDIR=str(full))
        lake = new_lake(store, "full")
        code, output = label(nodes, lake, model).wait()
        assert code == 1, output
        assert "No space left on device" in output
        assert "Traceback" not in output
        assert rows(lake, "failures") == 0, "no video is to blame"
    finally:
        nodes.stop()
        subprocess.run(["umount", "--lazy", str(full)], check=True)
    nodes.restart()
    code, output = label(nodes, lake, model).wait()
    assert code == 0, output
    assert_same_decisions(lake, undisturbed[0])
