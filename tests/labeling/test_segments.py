"""A video in segments gives pairs within clips, with the frames that their PTS name, however often it is killed."""

import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from labeling import segments
from labeling.samplers import Sampler
from labeling.samplers.motion import MotionSampler
from labeling.samplers.uniform import UniformSampler
from labeling.segments import Segment, sample_segment, sample_video
from labeling.settings import SamplingSettings
from tests.media import FPS, H264, MISSING, NAMES, Medium, encode, make_long, picture, read_counter, real_clips

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason=MISSING)

SHORT = SamplingSettings(
    segment_seconds=1.7, max_clip_seconds=1.0, sampler=MotionSampler(min_interval=6, score_stride=3)
)


def sample(path: Path, settings: SamplingSettings = SHORT, *, forget: bool = False) -> list[Segment]:
    """All segments of a video; with `forget`, as if every call ran in a fresh process."""
    found, start = [], None
    while not found or start is not None:
        if forget:
            segments._held.clear()
        found.append(sample_segment(str(path), start, settings, 96))
        assert start is None or found[-1].next_start_pts is None or found[-1].next_start_pts > start
        start = found[-1].next_start_pts
    return found


def image(jpeg: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_pairs_show_the_frames_that_their_pts_name(corpus: dict[str, Medium]) -> None:
    for name, medium in corpus.items():
        if medium.outcome == "refused":
            continue
        found = sample(medium.path)
        assert sum(len(segment.pairs) for segment in found) > 5, name
        assert any(segment.failures for segment in found) is (medium.outcome == "damaged"), name
        for segment in found:
            time_base = Fraction(*segment.time_base)
            for pair in segment.pairs:
                for pts, jpeg in ((pair.obs_pts, pair.obs), (pair.next_pts, pair.next_obs)):
                    assert image(jpeg).shape == (96, 96, 3)
                    assert read_counter(image(jpeg)) == medium.shown_at(pts * time_base), name
                assert pair.obs_pts < pair.next_pts
                assert not any(
                    failure.start_pts is not None and pair.obs_pts <= failure.start_pts < pair.next_pts
                    for failure in segment.failures
                ), name


def test_the_same_whether_the_video_stayed_open_or_every_segment_seeks(corpus: dict[str, Medium]) -> None:
    for name, medium in corpus.items():
        if medium.outcome != "refused" and name not in NAMES:
            assert sample(medium.path) == sample(medium.path, forget=True), name
    for path in real_clips():
        assert sample(path) == sample(path, forget=True)


def test_one_failure_for_gaps_without_a_pair_between_them(corpus: dict[str, Medium]) -> None:
    for name in ("zeroed-h264.mp4", "truncated.mp4"):
        failures = [failure for segment in sample(corpus[name].path) for failure in segment.failures]
        assert [(failure.stage, failure.end_pts is None) for failure in failures] == [("decode", "trunc" in name)]


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shots of 2 s."""
    numbers = range(6 * FPS)
    return encode(
        tmp_path_factory.mktemp("shots") / "shots.mp4", (picture(i, scene=i // (2 * FPS)) for i in numbers), *H264
    )


@pytest.mark.parametrize(
    ("sampler", "least"), [(MotionSampler(min_interval=6, score_stride=3), 6), (UniformSampler(uniform_stride=7), 7)]
)
def test_no_pair_crosses_a_cut_or_the_end_of_a_clip(shots: Path, sampler: Sampler, least: int) -> None:
    (segment,) = sample(shots, SamplingSettings(sampler=sampler, max_clip_seconds=1.5))
    numbers = [(read_counter(image(pair.obs)), read_counter(image(pair.next_obs))) for pair in segment.pairs]
    assert {obs // (2 * FPS) for obs, _ in numbers} == {0, 1, 2}
    assert all(obs // (2 * FPS) == after // (2 * FPS) for obs, after in numbers)
    assert all(least <= after - obs <= 1.5 * FPS for obs, after in numbers)
    # Neighbors share their frame, and its bytes.
    chained = [(one, two) for one, two in pairwise(segment.pairs) if one.next_pts == two.obs_pts]
    assert chained
    assert all(one.next_obs == two.obs for one, two in chained)


def test_frames_are_kept_where_things_move(tmp_path: Path) -> None:
    # Still but for one second, from frame 40 to 65.
    numbers = [min(max(i, 40), 65) for i in range(125)]
    path = encode(tmp_path / "still.mp4", (picture(i) for i in numbers), *H264)
    (segment,) = sample(
        path, SamplingSettings(sampler=MotionSampler(frames_per_clip=2, score_stride=5, min_interval=10))
    )
    (pair,) = segment.pairs
    assert 40 <= read_counter(image(pair.obs)) < read_counter(image(pair.next_obs)) <= 65
    assert pair.motion > 0


@pytest.mark.slow
def test_memory_stays_flat_over_two_hours(tmp_path: Path) -> None:
    medium = make_long(tmp_path / "long.mp4")
    process, usage, frames = psutil.Process(), [], 0
    for segment in sample_video(str(medium.path), SamplingSettings(), 224):
        frames += segment.frames
        usage.append(process.memory_info().rss)
        assert segment.pairs
    assert frames == medium.frames
    assert len(usage) == 120
    assert max(usage) - usage[5] < 20_000_000
