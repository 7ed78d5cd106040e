"""Laws of selection, and what the motion and shot measures see."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labeling.sampling import (
    SamplingSettings,
    choose,
    content_change,
    flow_picture,
    motion_between,
    thumbnail,
)

scored = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 15)), max_size=40)


@given(scored, st.integers(2, 8), st.integers(1, 40))
def test_choice_respects_count_interval_and_score_order(
    steps: list[tuple[int, int]], count: int, min_interval: int
) -> None:
    scores = [float(score) for score, _ in steps]
    positions = np.cumsum([step for _, step in steps]).tolist()
    chosen = choose(scores, positions, count, min_interval)
    assert chosen == sorted(set(chosen)) == choose(scores, positions, count, min_interval)
    assert len(chosen) <= count
    gaps = np.diff([positions[index] for index in chosen])
    assert (gaps >= min_interval).all()
    for index in set(range(len(scores))) - set(chosen):
        # Left out only for frames that come first: a full set, or neighbors, of a better rank.
        better = [other for other in chosen if (-scores[other], other) < (-scores[index], index)]
        assert len(better) == count or any(abs(positions[index] - positions[other]) < min_interval for other in better)


def test_choice_of_nothing_and_of_ties() -> None:
    assert choose([], [], 6, 20) == []
    assert choose([1.0] * 10, list(range(0, 100, 10)), 3, 20) == [0, 2, 4]


def scene(seed: int, height: int = 180, width: int = 320) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 16), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def moved(image: np.ndarray, x: float, y: float) -> np.ndarray:
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    return cv2.warpAffine(image, matrix, image.shape[::-1], borderMode=cv2.BORDER_REFLECT)


def with_disc(image: np.ndarray, x: int) -> np.ndarray:
    return cv2.circle(image.copy(), (x, 90), 40, 255, -1)


@pytest.mark.parametrize("seed", range(5))
def test_motion_of_things_is_told_from_motion_of_the_camera(seed: int) -> None:
    still = scene(seed)
    small = flow_picture(still)
    assert motion_between(small, small) == (0.0, 0.0)
    diagonal = np.hypot(*still.shape)
    motion, camera = motion_between(small, flow_picture(moved(still, 8, 4)))
    assert camera == pytest.approx(np.hypot(8, 4) / diagonal, rel=0.2)
    assert motion < camera / 4
    motion, camera = motion_between(flow_picture(with_disc(still, 120)), flow_picture(with_disc(still, 140)))
    assert motion > 1.5 * camera
    # Together, both are seen.
    both = moved(with_disc(still, 140), 8, 4)
    motion, camera = motion_between(flow_picture(with_disc(still, 120)), flow_picture(both))
    assert camera == pytest.approx(np.hypot(8, 4) / diagonal, rel=0.3)
    assert motion > 0.001


def test_motion_is_a_share_of_the_frame_at_any_size_and_shape() -> None:
    for height, width in ((36, 64), (1080, 1920), (1920, 1080), (16, 1600)):
        image = scene(3, height, width)
        assert max(flow_picture(image).shape) == 128
        assert min(flow_picture(image).shape) >= 32
    small, large = scene(3, 90, 160), scene(3, 720, 1280)
    shares = [
        motion_between(flow_picture(image), flow_picture(moved(image, image.shape[1] / 40, 0)))[1]
        for image in (small, large)
    ]
    assert shares[0] == pytest.approx(shares[1], rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_only_another_scene_is_a_cut(seed: int) -> None:
    threshold = SamplingSettings().shot_threshold
    here = scene(seed)
    shown = thumbnail(here)
    assert content_change(shown, shown) == pytest.approx(0, abs=1e-6)
    darker = (here * 0.4 + 20).astype(np.uint8)
    assert content_change(shown, thumbnail(darker)) < 0.1
    assert content_change(shown, thumbnail(moved(here, 8, 4))) < threshold
    assert content_change(shown, thumbnail(scene(seed + 100))) > threshold
    black = thumbnail(np.zeros_like(here))
    assert content_change(shown, black) == content_change(black, shown) == 1.0
    assert content_change(black, black) == 0.0


def test_settings_refuse_what_makes_no_sense() -> None:
    for wrong in ({"frames_per_clip": 1}, {"min_interval": 0}, {"decoder": "ffmpeg"}, {"sroce_stride": 5}):
        with pytest.raises(ValidationError):
            SamplingSettings(**wrong)
