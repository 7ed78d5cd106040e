"""Footage that the builtin model has no names for: real photographs under changes that the sample world lacks.

The photographs are those that scikit-image ships. Whatever the model names in them is wrong: its actions are about
colored shapes, pans, and light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import skimage.data

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
FRAMES, FPS, SIDE = 250, 25, 256

RGB = npt.NDArray[np.uint8]


def write_clips(folder: Path) -> list[tuple[str, Path]]:
    """One clip of 10 s for each photograph and change; the name of the photograph with each."""
    images = {name: _square(getattr(skimage.data, name)()) for name in PHOTOGRAPHS}
    clips = []
    for number, name in enumerate(PHOTOGRAPHS):
        other = images[PHOTOGRAPHS[(number + 1) % len(PHOTOGRAPHS)]]
        for kind, change in CHANGES.items():
            path = folder / f"{name}-{kind}.mp4"
            _write(path, (change(images[name], other, _there_and_back(frame)) for frame in range(FRAMES)))
            clips.append((name, path))
    return clips


def _square(image: npt.NDArray[np.generic]) -> RGB:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    cut = np.asarray(image[top : top + side, left : left + side, :3], np.uint8)
    resized: RGB = cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
    return resized


def _there_and_back(frame: int) -> float:
    """0 to 1 in five seconds, and back."""
    return 1 - abs(2 * frame / FRAMES - 1)


def _warp(image: RGB, degrees: float, scale: float) -> RGB:
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), degrees, scale)
    warped: RGB = cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT).astype(np.uint8)
    return warped


def _zoom(image: RGB, other: RGB, share: float) -> RGB:
    return _warp(image, 0, 1.1 + share)


def _roll(image: RGB, other: RGB, share: float) -> RGB:
    return _warp(image, 90 * share, 1.5)


def _dissolve(image: RGB, other: RGB, share: float) -> RGB:
    mixed: RGB = cv2.addWeighted(image, 1 - share, other, share, 0).astype(np.uint8)
    return mixed


def _focus(image: RGB, other: RGB, share: float) -> RGB:
    blurred: RGB = cv2.GaussianBlur(image, (0, 0), 0.1 + 8 * share).astype(np.uint8)
    return blurred


CHANGES: dict[str, Callable[[RGB, RGB, float], RGB]] = {
    "zoom": _zoom,
    "roll": _roll,
    "dissolve": _dissolve,
    "focus": _focus,
}


def _write(path: Path, images: Iterator[RGB]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
