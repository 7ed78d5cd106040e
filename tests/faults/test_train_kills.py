"""Kill -9 a worker, a feeder and the driver of real trainings; fill the disk; take the store away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lake.tables import Lake
from tests.conftest import Bucket
from tests.training.command import Training
from tests.training.tiny import add_triples, save_tiny_world

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 80
OPTIONS = (
    "--steps", str(STEPS), "--batch-size", "16", "--micro-batch-size", "4", "--peak-lr", "0.01", "--warmup-steps", "5",
    "--method", "full", "--floor", "0.3", "--checkpoint-every", "10", "--log-every", "1",
)  # fmt: skip
TOLERANCE = 1e-6
"""Of any weight: a run that was disturbed computes the same in the same order, so it should be none at all."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("model"), hidden=128)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    # 13 triples and steps of 16: no step begins an epoch but the first.
    add_triples(lake, 13)
    return lake


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, lake: Lake, model: Path) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("undisturbed")
    code, output = Training(lake.uri, model, "undisturbed", out, *OPTIONS).wait()
    assert code == 0, output
    return load_file(out / "undisturbed" / "model" / "model.safetensors")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of the run: each test its own, on the one lake."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


def check(run: Training, undisturbed: dict[str, np.ndarray], unlogged: tuple[int, ...] = ()) -> None:
    found = load_file(run.folder / "model" / "model.safetensors")
    assert found.keys() == undisturbed.keys()
    for name, weight in undisturbed.items():
        assert np.abs(found[name] - weight).max() <= TOLERANCE, name
    steps = {line["step"] for line in run.lines()}
    assert steps.union(unlogged) == set(range(1, STEPS + 1))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("role", "step"),
    [
        ("driver", 50),
        *(pytest.param(role, step, marks=pytest.mark.long) for role, step in (("worker", 40), ("feeder", 20))),
    ],
)
def test_a_killed_process_changes_nothing(
    tmp_path: Path, lake: Lake, model: Path, undisturbed: dict[str, np.ndarray], name: str, role: str, step: int
) -> None:
    run = Training(lake.uri, model, name, tmp_path, *OPTIONS)
    run.wait_for_step(step)
    assert run.kill(role)
    code, output = run.wait()
    if role == "driver":
        assert code == -signal.SIGKILL
        run = Training(lake.uri, model, name, tmp_path, *OPTIONS)
        code, output = run.wait()
    assert code == 0, output
    # A driver takes along what it was told in its last second.
    check(run, undisturbed, tuple(range(1, STEPS)) if role == "driver" else ())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_one_of_two_workers_is_killed(tmp_path: Path, lake: Lake, model: Path, name: str) -> None:
    two = (*OPTIONS, "--workers", "2")
    code, output = Training(lake.uri, model, "two", tmp_path, *two).wait(400)
    assert code == 0, output
    run = Training(lake.uri, model, name, tmp_path, *two)
    run.wait_for_step(40)
    assert run.kill("worker")
    code, output = run.wait(400)
    assert code == 0, output
    check(run, load_file(tmp_path / "two" / "model" / "model.safetensors"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_signal_ends_a_run_with_a_checkpoint(
    tmp_path: Path, lake: Lake, model: Path, undisturbed: dict[str, np.ndarray], name: str
) -> None:
    run = Training(lake.uri, model, name, tmp_path, *OPTIONS)
    run.wait_for_step(20)
    run.process.send_signal(signal.SIGTERM)
    code, output = run.wait()
    assert code == 0, output
    assert f"run {name} drained at step" in output
    again = Training(lake.uri, model, name, tmp_path, *OPTIONS)
    code, output = again.wait()
    assert code == 0, output
    check(again, undisturbed)
    steps = [line["step"] for line in again.lines()]
    assert steps == sorted(set(steps)), "nothing was done twice"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", folder]).returncode:
        pytest.skip("needs root, to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_full_disk_keeps_the_checkpoint_before(
    small_disk: Path, lake: Lake, model: Path, undisturbed: dict[str, np.ndarray], name: str
) -> None:
    run = Training(lake.uri, model, name, small_disk, *OPTIONS)
    code, output = run.wait()
    assert code == 2, output
    [line] = [line for line in output.splitlines() if "worldlake: the checkpoint of step" in line]
    assert "No space left" in line
    assert "it resumes from the checkpoint before" in line
    assert [path.name for path in run.folder.glob("checkpoint-*/state.json")] or "step 10" in line
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = Training(lake.uri, model, name, small_disk, *OPTIONS)
    code, output = again.wait()
    assert code == 0, output
    check(again, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_store_that_is_away_for_half_a_minute(
    tmp_path: Path, bucket: Bucket, model: Path, undisturbed: dict[str, np.ndarray], name: str
) -> None:
    lake = Lake(f"{bucket.uri}/lake")
    add_triples(lake, 13)
    run = Training(lake.uri, model, name, tmp_path, *OPTIONS, "--out", f"{bucket.uri}/models")
    filesystem, path = lake.storage.filesystem(f"{bucket.uri}/models/{name}/checkpoint-0001-00000010/state.json")
    until = time.monotonic() + 300
    while filesystem.get_file_info(path).size is None:
        assert time.monotonic() < until
        assert run.process.poll() is None, run.wait()
        time.sleep(0.2)
    bucket.server.stop()
    time.sleep(30)
    bucket.server.start()
    code, output = run.wait(400)
    assert code == 0, output
    target = tmp_path / "model.safetensors"
    with filesystem.open_input_stream(f"{bucket.name}/models/{name}/model/model.safetensors") as found:
        target.write_bytes(found.read())
    for name, weight in load_file(target).items():
        assert np.abs(undisturbed[name] - weight).max() <= TOLERANCE, name
