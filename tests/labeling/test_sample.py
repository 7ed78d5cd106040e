from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from labeling.labeler import Labeler, LabelerSettings
from labeling.sample import SampleVideos
from labeling.settings import SamplingSettings
from labeling.stream import WORK
from lake.storage import StorageConfig, local_etag
from tests.media import ffmpeg


class Counting:
    """A run that nobody stops, and that counts how often it was asked."""

    asked = 0

    def requested(self) -> bool:
        self.asked += 1
        return False


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
