from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.labeler import Labeler, LabelerSettings
from labeling.sample import SampleVideos
from labeling.settings import SamplingSettings
from labeling.stream import WORK
from lake.storage import StorageConfig, local_etag
from tests.media import encode, ffmpeg, picture


class Counting:
    """A run that nobody stops, and that counts how often it was asked."""

    asked = 0

    def requested(self) -> bool:
        self.asked += 1
        return False


def sampled(path: Path, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a video, the last of which ends it."""
    labeler = Labeler(LabelerSettings(sampling=SamplingSettings(**settings)), 64, {"decoder": "pyav"})
    sampler = SampleVideos(labeler, StorageConfig(), Counting(), 60)
    video = {"video_id": "v", "uri": str(path), "etag": local_etag(path), "decided": []}
    found = [row for block in sampler(pa.Table.from_pylist([video], WORK)) for row in block.to_pylist()]
    sampler.close()
    return found


def moving(path: Path, frames: int, fps: int) -> Path:
    return encode(path, [picture(number * 25 // fps) for number in range(frames)], "-c:v", "libx264", fps=fps)


@pytest.mark.parametrize("fps", [1, 2, 5, 25, 120, 240])
def test_intervals_in_seconds_suit_every_frame_rate(tmp_path: Path, fps: int) -> None:
    path = moving(tmp_path / "clip.mp4", 4 * fps, fps)
    rows = sampled(path, sampler={"method": "motion", "min_interval": "0.7s"})
    spans = [row["next_time_s"] - row["obs_time_s"] for row in rows if row["triple_id"]]
    assert len(spans) >= 2
    assert min(spans) >= 0.699
    assert sum(spans) <= 4
    uniform = sampled(path, sampler={"method": "uniform", "uniform_stride": "1s"})
    assert [row["next_time_s"] - row["obs_time_s"] for row in uniform] == pytest.approx([1, 1, 1])


def test_a_video_without_a_pair_says_why(tmp_path: Path) -> None:
    for frames, fps in ((15, 25), (15, 2), (7, 1)):
        (row,) = sampled(moving(tmp_path / f"{frames}-{fps}.mp4", frames, fps))
        assert (row["triple_id"], row["sampled"]) == (None, 0)
        assert row["note"] == (
            f"no frame pair: the longest clip has {frames} frames, and a pair takes two frames 20 frames apart "
            "(--min-interval) of those that are measured, every 10 frames; clips end after 10 s (--max-clip-seconds, "
            "--segment-seconds), at cuts, and at damage"
        )


def test_of_several_tracks_the_one_that_is_read_is_told(tmp_path: Path) -> None:
    one, other = (moving(tmp_path / f"{name}.mp4", 50, 25) for name in ("one", "other"))
    both = tmp_path / "both.mkv"
    ffmpeg("-i", str(one), "-i", str(other), "-map", "0", "-map", "1", "-c", "copy", str(both))
    *_, last = sampled(both)
    assert last["note"] == "of 2 video tracks track 0, 192 x 144, was read; others: 192 x 144"


def test_a_sign_of_life_comes_after_every_segment_also_without_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x48:rate=10:duration=3", "-pix_fmt", "yuv420p", str(path))
    labeler = Labeler(LabelerSettings(sampling=SamplingSettings(segment_seconds=1)), 64, {"decoder": "pyav"})
    sampler = SampleVideos(labeler, StorageConfig(), stop := Counting(), 60)
    video = {"video_id": "v", "uri": str(path), "etag": local_etag(path), "decided": []}
    blocks = [block.to_pylist() for block in sampler(pa.Table.from_pylist([video], WORK))]
    sampler.close()
    assert [row["triple_id"] for rows in blocks for row in rows] == [None]
    # Before the video, and after each of its segments but the last.
    assert stop.asked >= 3
