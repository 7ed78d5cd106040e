"""Credentials that expire while a lake in S3 is written: one line, soon, and the same command resumes with new ones."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from lake import repair
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.conftest import Bucket
from tests.expiring import Expiring
from tests.models.tiny import save_tiny
from tests.runs import label, rows
from tests.worldlake.command import worldlake
from worldlake.status import lake_status

VIDEOS = 6
SOON_S = 30
"""Of which a labeling run takes some to end its processes; it once tried for ten minutes."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for clip in write_folder(tmp_path_factory.mktemp("clips"), range(40_000, 40_000 + VIDEOS)):
        shutil.copy(clip, folder / clip.name)
    return folder


def one_line(output: str) -> str:
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if line.startswith("worldlake: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", ["PUT .*/videos/_delta_log/", "PUT .*/videos/writer", "PUT .*/runs/_delta_log/.*01.json"]
)
def test_an_ingest_whose_token_expires(bucket: Bucket, videos: Path, at: str) -> None:
    lake = Lake(f"{bucket.uri}/lake")
    lake.create()
    with Expiring(bucket.server.endpoint, at) as store:
        code, output = worldlake("ingest", str(videos), "--lake", lake.uri, "--endpoint-url", store.endpoint)
        assert store.expired_at
        assert time.monotonic() - store.expired_at < SOON_S
    assert code == 1, output
    assert "credentials have expired" in one_line(output)
    code, output = worldlake("ingest", str(videos), "--lake", lake.uri)
    assert code == 0, output
    assert rows(lake, "videos") == VIDEOS
    assert repair.check(lake) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_labeling_run_whose_token_expires(bucket: Bucket, videos: Path, tmp_path: Path) -> None:
    lake, model = Lake(f"{bucket.uri}/lake"), save_tiny("qwen2_vl", tmp_path / "model")
    code, output = worldlake("ingest", str(videos), "--lake", lake.uri)
    assert code == 0, output
    # Between the commits of two tables, behind the version that fences older runs.
    with Expiring(bucket.server.endpoint, "PUT .*/rejections/_delta_log/.*02.json") as store:
        code, output = label(lake.uri, model, "--endpoint-url", store.endpoint)
        assert store.expired_at, output
        assert time.monotonic() - store.expired_at < SOON_S
    assert code == 1, output
    assert "credentials have expired" in one_line(output)
    code, output = label(lake.uri, model)
    assert code == 0, output
    assert repair.check(lake) == []
    [labeler] = lake_status(lake)["labelers"]
    assert labeler["balances"]
    assert labeler["videos"] == {"listed": VIDEOS, "finished": VIDEOS, "failed": 0, "pending": 0}
