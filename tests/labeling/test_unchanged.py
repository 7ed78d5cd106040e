"""Footage in which nothing changes, as real files through the real stages: no shipped policy accepts any of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from labeling.annotate import Annotate
from labeling.labeler import Labeler, LabelerSettings
from labeling.policy import load_policy
from labeling.sample import SampleVideos
from labeling.stream import WORK
from labeling.verify import Verify
from lake.storage import StorageConfig, local_etag
from sample_world.clips import encode_clip, make_clip, write_folder
from tests.labeling.test_policy import SHIPPED
from tests.labeling.test_sample import Counting
from tests.media import FFMPEG, H264, MISSING, RGB, encode, real_clips

pytestmark = pytest.mark.skipif(FFMPEG is None, reason=MISSING)

FRAMES = 150
# Five frames forward and five back: sampling looks at every tenth frame, so both frames of a pair show one moment.
_THERE_AND_BACK = [0, 1, 2, 3, 4, 5, 4, 3, 2, 1]


def _frames(path: Path) -> list[RGB]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), FRAMES)]


def _footage(frames: list[RGB]) -> Iterator[tuple[str, list[RGB]]]:
    shown = frames[30]
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 4, shown.shape) for _ in range(FRAMES)]
    yield "frozen", [shown] * FRAMES
    yield "grain", [np.clip(shown + one, 0, 255).astype(np.uint8) for one in noise]
    yield "there-and-back", [frames[30 + _THERE_AND_BACK[number % 10]] for number in range(FRAMES)]
    yield "black", [np.zeros_like(shown)] * FRAMES


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Rows of `LABELED`, by the builtin model, of unchanging footage made from generated and from real clips."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("unchanged")
    for source in [*write_folder(sources, range(320_000, 320_004)), *real_clips()]:
        for kind, frames in _footage(_frames(source)):
            encode(folder / f"{kind} of {source.stem}.mp4", frames, *H264)
    return _label(sorted(folder.iterdir()))


def _label(paths: list[Path]) -> pa.Table:
    annotate = Annotate(LabelerSettings().model)
    labeler = Labeler(LabelerSettings(), 64, {"decoder": "pyav"})
    sampler = SampleVideos(labeler, StorageConfig(), Counting(), 60)
    videos = [{"video_id": path.stem, "uri": str(path), "etag": local_etag(path), "decided": []} for path in paths]
    try:
        return pa.concat_tables([annotate(block) for block in sampler(pa.Table.from_pylist(videos, WORK))])
    finally:
        sampler.close()


def _accepted(labeled: pa.Table, policy: str) -> list[dict[str, Any]]:
    rows = Verify(load_policy(policy))(labeled).to_pylist()
    assert not any(row["error_type"] for row in rows)
    return [row for row in rows if row["triple_id"] and not row["reasons"]]


@pytest.mark.slow
@pytest.mark.parametrize("policy", SHIPPED)
def test_nothing_is_accepted_where_nothing_changes(labeled: pa.Table, policy: str) -> None:
    pairs = [row for row in labeled.to_pylist() if row["triple_id"]]
    kinds = [row["video_id"].split(" of ")[0] for row in pairs]
    assert {kind: kinds.count(kind) >= 20 for kind in kinds} == dict.fromkeys(
        ("frozen", "grain", "there-and-back", "black"), True
    )
    accepted = _accepted(labeled, policy)
    assert [(row["video_id"], row["action"], row["direction"], row["copy"]) for row in accepted] == []


@pytest.mark.parametrize("policy", SHIPPED)
def test_what_changes_is_accepted(tmp_path: Path, policy: str) -> None:
    """Or the law above would be kept by a policy that accepts nothing."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(make_clip(320_001)))
    assert _accepted(_label([path]), policy)
