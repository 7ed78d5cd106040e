"""How a scene of the sample world looks: shapes in plain colors on a texture, under a light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""One RGB frame, uint8, shape (height, width, 3)."""

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 185, 50),
    "blue": (40, 70, 235),
    "yellow": (235, 215, 30),
    "purple": (170, 45, 200),
    "white": (240, 240, 240),
}


def _circle(radius: float) -> list[tuple[float, float]]:
    return [(radius * math.cos(math.tau * i / 32), radius * math.sin(math.tau * i / 32)) for i in range(32)]


# Outlines in units of the radius, y downwards; a second one is a hole.
OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "ring": [_circle(1.0), _circle(0.55)],
    "square": [[(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]],
    "triangle": [[(0.0, -1.0), (0.65, 0.75), (-0.65, 0.75)]],
    "cross": [
        [
            (a * x - b * y, a * y + b * x)
            for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1))
            for x, y in ((-0.27, -0.95), (0.27, -0.95), (0.27, -0.27))
        ]
    ],
}

_BITS = 4

# How far the camera may move, in frame widths.
CAMERA_REACH = 0.5


@dataclass(frozen=True)
class Shape:
    """A shape: `x`, `y` and `radius` in frame widths and world coordinates, `angle` in radians, clockwise."""

    color: str
    kind: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def name(self) -> str:
        """How actions call it, by the color, which no two shapes of a scene share: `the red shape`."""
        return f"the {self.color} shape"


@dataclass(frozen=True)
class Scene:
    """A state of the world: what is there, where the camera's top left corner is, and how bright it is."""

    shapes: tuple[Shape, ...]
    camera: tuple[float, float]
    light: float


def texture_of(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """A background twice as wide as the frame, float32 RGB: noise of several scales, or tilted waves, low in color."""
    side = int(size * (1 + 2 * CAMERA_REACH))
    if rng.integers(3):
        pattern = np.zeros((side, side), np.float32)
        for cells in rng.integers(6, 40, size=int(rng.integers(2, 4))):
            grid = rng.standard_normal((int(cells), int(cells))).astype(np.float32)
            pattern += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) * rng.uniform(0.5, 1.0)
    else:
        y, x = np.mgrid[0:side, 0:side].astype(np.float32) / size
        pattern = np.zeros((side, side), np.float32)
        for angle, waves in zip(rng.uniform(0, math.pi) + np.array([0, 1.2]), rng.uniform(3, 9, size=2), strict=True):
            along = x * math.cos(angle) + y * math.sin(angle)
            pattern += np.sin(2 * math.pi * (waves * along + rng.uniform())) * rng.uniform(0.5, 1.0)
        # Two plane waves repeat, so a pan could be read either way; a slow drift of brightness marks the place.
        grid = rng.standard_normal((5, 5)).astype(np.float32)
        pattern += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    pattern = np.clip(pattern / max(float(pattern.std()), 1e-6), -2, 2)
    base = rng.uniform(50, 90) + rng.uniform(-12, 12, size=3)
    contrast = rng.uniform(15, 26) * (1 + rng.uniform(-0.2, 0.2, size=3))
    texture: npt.NDArray[np.float32] = (base + pattern[..., None] * contrast).clip(20, 160).astype(np.float32)
    return texture


def draw(scene: Scene, texture: npt.NDArray[np.float32], size: int) -> Frame:
    """Draw a scene: the texture seen by the camera, the shapes with smooth edges, and the light over all."""
    offset = [(c + CAMERA_REACH) * size for c in scene.camera]
    shift = np.array([[1, 0, -offset[0]], [0, 1, -offset[1]]], np.float64)
    image = cv2.warpAffine(texture, shift, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    frame: Frame = np.clip(image, 0, 255).astype(np.uint8)
    for shape in scene.shapes:
        _draw_shape(frame, shape, scene.camera)
    lit: Frame = np.rint(frame * scene.light).astype(np.uint8)
    return lit


def _draw_shape(image: Frame, shape: Shape, camera: tuple[float, float]) -> None:
    size = image.shape[0]
    x, y, radius = (shape.x - camera[0]) * size, (shape.y - camera[1]) * size, shape.radius * size
    cos, sin = math.cos(shape.angle) * radius, math.sin(shape.angle) * radius
    turned = [[(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in outline] for outline in OUTLINES[shape.kind]]
    # OpenCV takes sub-pixel coordinates as integers with `_BITS` fractional bits.
    contours = [np.round(np.array(outline) * 2**_BITS).astype(np.int32) for outline in turned]
    cv2.fillPoly(image, contours, COLORS[shape.color], cv2.LINE_AA, _BITS)
