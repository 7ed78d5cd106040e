"""Measures of frames: shot cuts and motion."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from labeling.decoding import Gray

# Long side in pixels of the pictures on which motion is measured: an object of a twentieth of the frame still covers
# 6 px, and a pair costs about a millisecond.
FLOW_SIZE = 128
# DIS matches patches of 8 px on at least two scales.
MIN_FLOW_SIDE = 32
# A step of 8 px gives 16 x 9 points on a wide frame: plenty for a model of four parameters.
GRID_STEP = 8
# What misses the camera model by more than this many flow pixels moves on its own.
CAMERA_TOLERANCE_PX = 1.0
# Only what most of the picture does together is called camera motion.
CAMERA_MAJORITY = 0.5
# Short side in pixels, at least, of the picture from which a thumbnail is made, of which every frame has one.
CUT_SIDE = 64
# Side in pixels of the thumbnails compared for cuts: so coarse that little moves by more than a cell in one frame.
THUMBNAIL_SIZE = 16
# Standard deviation in gray levels under which a thumbnail shows nothing but noise (black, fades).
FLAT_DEVIATION = 3.0
# Difference in gray levels between two flat pictures that counts as entirely different.
FLAT_DIFFERENCE = 128.0

Flow = npt.NDArray[np.float32]
"""A displacement in pixels (x, y) for every pixel, float32, shape (height, width, 2)."""


class Thumbnail(NamedTuple):
    """A tiny picture, uint8, shape (16, 16), with the mean and the standard deviation of its gray levels."""

    pixels: Gray
    level: float
    deviation: float


def thumbnail(luma: Gray) -> Thumbnail:
    """Reduce a luminance picture to 16 x 16."""
    pixels: Gray = cv2.resize(luma, (THUMBNAIL_SIZE, THUMBNAIL_SIZE), interpolation=cv2.INTER_AREA)
    level, deviation = cv2.meanStdDev(pixels)
    return Thumbnail(pixels, float(level[0, 0]), float(deviation[0, 0]))


def content_change(before: Thumbnail, after: Thumbnail) -> float:
    """How different two consecutive frames are: 0 (the same scene) to 2 (its negative); unrelated scenes are near 1.

    One minus the Pearson correlation of the thumbnails where they fit best, up to one cell apart. A change of light or
    a fade scales and shifts the luminance, which leaves the correlation alone; fast pans move it by a cell; a cut
    replaces the layout of the picture. Flat pictures have no layout and are compared by their level.
    """
    flat = [picture.deviation < FLAT_DEVIATION for picture in (before, after)]
    if all(flat):
        return min(abs(before.level - after.level) / FLAT_DIFFERENCE, 1.0)
    if any(flat):
        return 1.0
    correlation = cv2.matchTemplate(after.pixels, before.pixels[1:-1, 1:-1], cv2.TM_CCOEFF_NORMED)
    return 1.0 - float(correlation.max())


def flow_picture(luma: Gray) -> Gray:
    """Resize a luminance picture so that its long side is 128 px and no side is under 32 px."""
    height, width = luma.shape
    scale = FLOW_SIZE / max(height, width)
    size = (max(MIN_FLOW_SIDE, round(width * scale)), max(MIN_FLOW_SIDE, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small: Gray = cv2.resize(luma, size, interpolation=interpolation)
    return small


def motion_between(before: Gray, after: Gray) -> tuple[float, float]:
    """Motion of things, and motion of the camera, between two pictures of the same size, uint8 (height, width).

    Both are mean displacements over the picture as a share of its diagonal. The flow is DIS (Kroeger et al. 2016,
    arXiv 1603.03590); the camera is the similarity transform that RANSAC fits to it; things are what is left.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_FAST).calc(before, after, None)
    camera = _camera_flow(flow)
    diagonal = float(np.hypot(*before.shape))
    # Rounded, so that the last bits, in which CPUs differ, do not decide which frame is kept.
    return _mean_length(flow - camera, diagonal), _mean_length(camera, diagonal)


def _mean_length(flow: Flow, diagonal: float) -> float:
    return round(float(cv2.magnitude(flow[..., 0], flow[..., 1]).mean()) / diagonal, 6)


@cache
def _pixels(height: int, width: int) -> Flow:
    """The coordinates (x, y) of every pixel."""
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([xs, ys], axis=-1)


def _camera_flow(flow: Flow) -> Flow:
    """The part of the flow that a moving camera explains, or zeros."""
    pixels = _pixels(*flow.shape[:2])
    grid = (slice(GRID_STEP // 2, None, GRID_STEP), slice(GRID_STEP // 2, None, GRID_STEP))
    source = pixels[grid].reshape(-1, 2)
    # The same frames give the same fit, whatever was computed before.
    cv2.setRNGSeed(0)
    matrix, inliers = cv2.estimateAffinePartial2D(
        source, source + flow[grid].reshape(-1, 2), ransacReprojThreshold=CAMERA_TOLERANCE_PX
    )
    if matrix is None or inliers.mean() < CAMERA_MAJORITY:
        return np.zeros_like(flow)
    moved: Flow = cv2.transform(pixels, matrix.astype(np.float32))
    return moved - pixels
