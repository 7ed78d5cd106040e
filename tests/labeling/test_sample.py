from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from labeling.labeler import Labeler, LabelerSettings
from labeling.sample import SampleVideos
from labeling.sampling import SamplingSettings
from labeling.stream import WORK
from lake.storage import StorageConfig, local_etag
from tests.media import ffmpeg


class Never:
    """A run that nobody stops."""

    def requested(self) -> bool:
        return False


def test_a_segment_without_a_pair_is_a_sign_of_life_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x48:rate=10:duration=3", "-pix_fmt", "yuv420p", str(path))
    labeler = Labeler(LabelerSettings(sampling=SamplingSettings(segment_s=1)), 64, {"decoder": "pyav"})
    sampler = SampleVideos(labeler, StorageConfig(), Never(), 60)
    video = {"video_id": "v", "uri": str(path), "etag": local_etag(path), "decided": []}
    blocks = [block.to_pylist() for block in sampler(pa.Table.from_pylist([video], WORK))]
    sampler.close()
    assert [len(rows) for rows in blocks] == [1] * len(blocks)
    assert len(blocks) >= 3
    assert [rows[0]["sampled"] for rows in blocks] == [None] * (len(blocks) - 1) + [0]
    assert all(rows[0]["triple_id"] is None for rows in blocks)
