"""Deleted videos stay away, and unreadable ones are visible, as a user sees both."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from lake.tables import Lake
from sample_world.clips import write_folder
from tests.worldlake.command import worldlake


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    return write_folder(tmp_path / "videos", range(60_000, 60_003), frames=50)


def ingest(videos: list[Path], lake: str, *options: str) -> dict[str, Any]:
    code, output = worldlake("ingest", str(videos[0].parent), "--lake", lake, "--json", *options)
    assert code == 0, output
    counts: dict[str, Any] = json.loads(output)
    return counts


def uris(lake: str) -> set[str]:
    return set(Lake(lake).dataset("videos").to_table(columns=["uri"])["uri"].to_pylist())


def test_a_forgotten_video_stays_away_until_it_is_asked_for(tmp_path: Path, videos: list[Path]) -> None:
    lake = str(tmp_path / "lake")
    assert ingest(videos, lake)["new"] == 3
    assert worldlake("forget", str(videos[0]), "--lake", lake)[0] == 0
    left = {str(path) for path in videos[1:]}
    # Touched, it would be another state of the file; asked for what failed, it is still not asked for.
    os.utime(videos[0], ns=(1, 1))
    for options in ((), ("--retry-failed",)):
        counts = ingest(videos, lake, *options)
        assert (counts["new"], counts["known"], counts["forgotten"], counts["failed"]) == (0, 3, 1, 0)
        assert uris(lake) == left
    code, output = worldlake("ingest", str(tmp_path / "videos"), "--lake", lake)
    assert (code, "skipped 1 deleted video;" in output, "--forgotten" in output) == (0, True, True), output
    assert "skips 1 deleted video" in worldlake("status", "--lake", lake)[1]
    for row in Lake(lake).dataset("failures").to_table().to_pylist():
        assert str(videos[0]) not in repr(row)

    assert ingest(videos, lake, "--forgotten")["new"] == 1
    assert uris(lake) == left | {str(videos[0])}
    assert ingest(videos, lake) | {"skipped": 0} == ingest(videos, lake, "--forgotten") | {"skipped": 0}
    assert json.loads(worldlake("status", "--lake", lake, "--json")[1])["forgotten"] == 0


def test_a_forgotten_data_set_stays_away_and_new_videos_of_it_come(tmp_path: Path, videos: list[Path]) -> None:
    lake = str(tmp_path / "lake")
    ingest(videos, lake, "--dataset", "mine")
    assert worldlake("forget", "mine", "--lake", lake)[0] == 0
    assert ingest(videos, lake, "--dataset", "mine")["forgotten"] == 3
    write_folder(tmp_path / "videos", [60_003], frames=50)
    counts = ingest(videos, lake, "--dataset", "mine")
    assert (counts["new"], counts["forgotten"]) == (1, 3)
    assert uris(lake).isdisjoint(map(str, videos))


def test_what_cannot_be_read_is_counted_until_it_can(tmp_path: Path, videos: list[Path]) -> None:
    lake, broken = str(tmp_path / "lake"), videos[0].with_name("broken.mp4")
    broken.write_bytes(b"no video")
    for new in (True, False):
        # Known to be bad is bad as well.
        code, output = worldlake("ingest", str(tmp_path / "videos"), "--lake", lake, "--strict")
        assert code == 3, output
        assert ("could not be read before" in output) is not new
        assert json.loads(worldlake("status", "--lake", lake, "--json")[1])["unread"] == 1
    for said in (output, worldlake("status", "--lake", lake)[1]):
        (line,) = [line for line in said.splitlines() if "worldlake sql" in line]
        code, rows = worldlake(*shlex.split(line[line.index("worldlake sql") :])[1:], "--format", "json")
        assert (code, [row["uri"] for row in json.loads(rows)]) == (0, [str(broken)]), rows

    broken.write_bytes(videos[0].read_bytes())
    code, output = worldlake("ingest", str(tmp_path / "videos"), "--lake", lake, "--strict")
    assert code == 0, output
    assert json.loads(worldlake("status", "--lake", lake, "--json")[1])["unread"] == 0
