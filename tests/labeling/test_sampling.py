"""The measures of motion and shots."""

import cv2
import numpy as np
import pytest

from labeling.sampling import (
    content_change,
    flow_picture,
    motion_between,
    thumbnail,
)
from labeling.settings import SamplingSettings


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
