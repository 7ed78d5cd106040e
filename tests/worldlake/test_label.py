"""The main job, as its user runs it: files of every kind in, rows that balance out, in a folder and on S3."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from labeling.segments import sample_video
from labeling.settings import SamplingSettings
from lake.catalog import EXTENSIONS
from lake.tables import Lake, now
from lake.writer import Writer
from sample_world.clips import write_folder
from tests.conftest import Bucket
from tests.media import Medium, read_counter, real_clips
from tests.models.tiny import save_tiny
from tests.runs import Labeling, assert_same_decisions, decisions, label, rows, wait_until
from tests.worldlake.command import worldlake
from worldlake.status import lake_status

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_cluster"), pytest.mark.timeout(600)]

VIDEOS = 500
# As on one machine: Ray begins and ends with the command, and its processes have its environment, so the keys of S3.
OWN_RAY = {"RAY_ADDRESS": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(corpus: dict[str, Medium]) -> Path:
    """The folder of the corpus, with real footage among it."""
    folder = next(iter(corpus.values())).path.parent
    for clip in real_clips():
        shutil.copy(clip, folder / f"real-{clip.name}")
    return folder


def only_labeler(lake: Lake) -> dict[str, Any]:
    (labeler,) = lake_status(lake)["labelers"]
    assert isinstance(labeler, dict)
    return labeler


def pairs_of(path: Path) -> set[tuple[int, int]]:
    """Return the pairs that sampling finds in a file by itself."""
    segments = sample_video(str(path), SamplingSettings(), 64)
    return {(pair.obs_pts, pair.next_pts) for segment in segments for pair in segment.pairs}


@pytest.mark.parametrize("place", ["s3", pytest.param("folder", marks=pytest.mark.slow)], indirect=True)
def test_files_of_every_kind(
    place: str, corpus: dict[str, Medium], videos: Path, model: Path, request: pytest.FixtureRequest
) -> None:
    source = str(videos)
    if place.startswith("s3://"):
        bucket: Bucket = request.getfixturevalue("bucket")
        source = f"{bucket.uri}/videos"
        for path in videos.iterdir():
            bucket.put(f"videos/{path.name}", path)
    code, output = label(place, model, source, "--decode-workers", "2", "--label-workers", "2", **OWN_RAY)
    assert code == 0, output
    lake = Lake(place)
    labeler = only_labeler(lake)
    assert labeler["balances"]
    assert labeler["videos"]["pending"] == 0
    decided = [
        row for name in ("triples", "rejections") for row in lake.read(name, ["uri", "obs_pts", "next_pts"]).to_pylist()
    ]
    failed = {
        row["uri"].rsplit("/", 1)[-1] for row in lake.read("failures", ["uri", "message"]).to_pylist() if row["message"]
    }
    for name, medium in corpus.items():
        if medium.path.suffix[1:] not in EXTENSIONS:
            continue
        uri = f"{source}/{name}"
        found = {(row["obs_pts"], row["next_pts"]) for row in decided if row["uri"] == uri}
        assert (name in failed) == (medium.outcome != "whole"), name
        if medium.outcome == "refused":
            assert not found, name
        else:
            assert found == pairs_of(medium.path), name
    assert {row["uri"] for row in decided} >= {f"{source}/real-{clip.name}" for clip in real_clips()}
    images_show_their_frames(lake, corpus)


def images_show_their_frames(lake: Lake, corpus: dict[str, Medium]) -> None:
    """The number burned into obs and next_obs is that of the frame with their PTS: no label is of another pair."""
    checked = 0
    for row in lake.dataset("triples").to_table().to_pylist():
        medium = corpus.get(row["uri"].rsplit("/", 1)[-1])
        if medium is None or medium.outcome != "whole":
            continue
        for image, pts in (("obs", "obs_pts"), ("next_obs", "next_pts")):
            square = cv2.imdecode(np.frombuffer(row[image], np.uint8), cv2.IMREAD_COLOR_RGB)
            shown = read_counter(square.astype(np.uint8))
            assert shown == medium.shown_at(row[pts] * Fraction(row["time_base"])), (row["uri"], pts)
            checked += 1
    assert checked > 20


@pytest.mark.slow
def test_a_lake_grows_changes_and_recovers(tmp_path: Path, model: Path) -> None:
    videos, lake = tmp_path / "videos", Lake(str(tmp_path / "lake"))
    first, second, third = write_folder(videos, range(50_000, 50_003), frames=120)
    away = tmp_path / "away.mp4"
    third.rename(away)
    code, output = label(lake.uri, model, str(videos), "--strict")
    assert code == 0, output
    undisturbed = decisions(lake)

    code, output = worldlake("label", "--lake", lake.uri, *model_options(model))
    assert (code, "nothing to do: every video that was asked for is labeled already" in output) == (0, True), output

    # A video that vanished after it was listed fails; the new one costs only itself.
    away.rename(third)
    fourth = write_folder(tmp_path / "more", [50_003], frames=120)[0]
    assert worldlake("ingest", str(videos), str(tmp_path / "more"), "--lake", lake.uri)[0] == 0
    fourth.rename(away)
    code, output = label(lake.uri, model, "--strict")
    assert code == 3, output
    (failure,) = lake.read("failures", ["uri", "stage", "error_type", "transient"]).to_pylist()
    assert failure == {"uri": str(fourth), "stage": "read", "error_type": "SourceChanged", "transient": False}
    assert only_labeler(lake)["videos"] == {"listed": 4, "finished": 3, "failed": 1, "pending": 0}
    run = only_labeler(lake)["runs"][-1]
    assert run["counts"]["videos_finished"] == 1

    # It is left alone until it is asked for again.
    assert "but for 1 that failed: --retry-failed" in worldlake("label", "--lake", lake.uri, *model_options(model))[1]
    away.rename(fourth)
    code, output = label(lake.uri, model, "--retry-failed")
    assert code == 0, output
    assert only_labeler(lake)["videos"] == {"listed": 4, "finished": 4, "failed": 0, "pending": 0}

    # A file that changed under its uri is another video; what was made of the old one stays.
    os.utime(first, ns=(1, 1))
    code, output = label(lake.uri, model, str(videos))
    assert code == 0, output
    assert only_labeler(lake)["balances"]
    kept = {row["triple_id"] for name in ("triples", "rejections") for row in decisions(lake)[name]}
    assert kept > {row["triple_id"] for name in ("triples", "rejections") for row in undisturbed[name]}

    # A labeler keeps its policy.
    code, output = worldlake("label", "--lake", lake.uri, *model_options(model)[:-1], "default")
    assert code == 2
    assert "keeps its policy" in output
    assert second.exists()


def model_options(model: Path) -> list[str]:
    return ["--model", f"hf:{model}", "--image-size", "64", "--policy", str(model / "policy.yaml")]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.long), "--max-hours"])
def test_a_drained_run_commits_what_it_began_and_goes_on_later(tmp_path: Path, model: Path, how: str) -> None:
    videos = tmp_path / "videos"
    # Many names of one file: sampling must not be through with all of them before the first rows are there.
    (clip,) = write_folder(videos, [51_000], frames=120)
    for number in range(VIDEOS - 1):
        os.link(clip, videos / f"{number}.mp4")
    lake = Lake(str(tmp_path / "lake"))
    assert worldlake("ingest", str(videos), "--lake", lake.uri)[0] == 0
    options = ("--max-hours", "0.0001") if how == "--max-hours" else ()
    run = Labeling(lake.uri, model, *options, **OWN_RAY)
    if not options:
        wait_until(lambda: run.process.poll() is not None or rows(lake, "rejections"))
        run.process.send_signal(getattr(signal, how))
    code, output = run.wait()
    assert code == 0, output
    assert "drained" in output
    drained = only_labeler(lake)
    assert drained["balances"]
    left = drained["videos"]["pending"]
    assert left > 0
    assert f"; {left:,} video{'s' * (left > 1)} pending: run the same command again" in output
    if how == "SIGTERM":
        code, output = label(lake.uri, model)
        assert code == 0, output
        assert only_labeler(lake)["videos"]["finished"] == VIDEOS
        assert only_labeler(lake)["balances"]


@pytest.mark.slow
def test_a_model_that_does_not_load_is_refused_in_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "videos", [55_000], frames=120)
    model = save_tiny("qwen2_vl", tmp_path / "model")
    kept = load_file(model / "model.safetensors")
    kept.pop(max(kept))
    save_file(kept, model / "model.safetensors", {"format": "pt"})
    lake = Lake(str(tmp_path / "lake"))
    assert worldlake("ingest", str(tmp_path / "videos"), "--lake", lake.uri)[0] == 0
    code, output = label(lake.uri, model)
    assert code == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("worldlake:")]
    assert f"{model} lacks 1 weights" in line
    assert "Traceback" not in output
    assert "ModelRefused" not in output
    assert only_labeler(lake)["videos"]["pending"] == 1
    assert only_labeler(lake)["runs"][0]["status"] == "failed"


@pytest.mark.slow
def test_a_run_that_gets_nowhere_ends_and_says_what_it_waits_for(tmp_path: Path, model: Path) -> None:
    write_folder(tmp_path / "videos", [55_000], frames=120)
    lake = Lake(str(tmp_path / "lake"))
    options = (str(tmp_path / "videos"), "--worker-cpus", "64", "--stall-timeout", "3")
    code, output = label(lake.uri, model, *options)
    assert code == 1, output
    (line,) = [line for line in output.splitlines() if line.startswith("worldlake:")]
    assert "1 video unfinished" in line
    assert "all workers together ask for" in line
    assert "Traceback" not in output
    assert only_labeler(lake)["videos"]["pending"] == 1
    assert only_labeler(lake)["runs"][0]["status"] == "failed"


@pytest.mark.slow
def test_sums_balance_while_a_failed_pair_is_tried_again(tmp_path: Path, model: Path) -> None:
    videos, lake = tmp_path / "videos", Lake(str(tmp_path / "lake"))
    write_folder(videos, [53_000], frames=120)
    code, output = label(lake.uri, model, str(videos))
    assert code == 0, output
    # As a run leaves it that was killed after it decided a pair that had failed, and before it finished the video.
    decided = lake.read("rejections", ["triple_id", "video_id", "labeler_id"]).to_pylist()[0]
    (done,) = lake.dataset("progress").to_table().to_pylist()
    failure = {**decided, "scope": "pair", "stage": "annotate", "attempt": 1, "failed_at": now()}
    Writer(lake).append("failures", [failure])
    before = {**done, "rejected": done["rejected"] - 1, "failed": 1, "finished_at": now()}
    Writer(lake).append("progress", [before])
    found = only_labeler(lake)
    assert found["balances"]
    assert found["pairs"]["failed"] == 0


@pytest.mark.long
def test_a_disk_that_is_full_ends_the_run_and_costs_no_video(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # Room for what Python tries out whether a folder can be written, not for a clip.
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        for path in write_folder(tmp_path / "videos", range(54_000, 54_004), frames=120):
            with path.open("ab") as file:
                # A box of nothing at the end, which the format allows.
                file.write((200_000).to_bytes(4, "big") + b"free" + bytes(200_000 - 8))
            bucket.put(f"videos/{path.name}", path)
        lake = Lake(f"{bucket.uri}/lake")
        code, output = label(lake.uri, model, f"{bucket.uri}/videos", TMPDIR=str(small), RAY_TMPDIR="/tmp", **OWN_RAY)
        assert code == 1, output
        last = output.strip().splitlines()[-1]
        assert "No space left on device" in last, output
        assert "TMPDIR" in last
        assert "Traceback" not in output
        assert only_labeler(lake)["videos"]["pending"] == 4
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    code, output = label(lake.uri, model, **OWN_RAY)
    assert code == 0, output
    assert only_labeler(lake)["videos"]["finished"] == 4


@pytest.mark.long
def test_a_store_that_is_away_for_a_while_is_waited_for(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    for path in write_folder(tmp_path, range(52_000, 52_016), frames=120):
        bucket.put(f"videos/{path.name}", path)
    calm, disturbed = Lake(f"{bucket.uri}/calm"), Lake(f"{bucket.uri}/disturbed")
    code, output = label(calm.uri, model, f"{bucket.uri}/videos", **OWN_RAY)
    assert code == 0, output
    assert worldlake("ingest", f"{bucket.uri}/videos", "--lake", disturbed.uri)[0] == 0
    run = Labeling(disturbed.uri, model, **OWN_RAY)
    wait_until(lambda: run.process.poll() is not None or run.find("decode"))
    bucket.server.stop()
    time.sleep(20)
    bucket.server.start()
    code, output = run.wait(400)
    assert code == 0, output
    assert_same_decisions(disturbed, decisions(calm))
    assert only_labeler(disturbed)["balances"]
