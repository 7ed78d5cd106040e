"""Requests to `/v1/label`: a frame pair each, of clips that no model was trained on."""

from __future__ import annotations

import base64
import json

import cv2
import numpy as np
import numpy.typing as npt

from labeling.images import encode_jpeg
from sample_world.pairs import clip_pairs

FIRST_SEED = 8_000_000


def bodies(count: int, size: int = 64) -> list[bytes]:
    """Return N requests, each with its own pair: images of `size` pixels."""
    made: list[bytes] = []
    seed = FIRST_SEED
    while len(made) < count:
        clip = clip_pairs(seed)
        frames = [base64.b64encode(encode_jpeg(_scaled(frame, size), 95)).decode() for frame in clip.frames]
        made += [json.dumps({"pairs": [{"obs": frames[a], "next_obs": frames[b]}]}).encode() for a, b in clip.index]
        seed += 1
    return made[:count]


def _scaled(frame: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    scaled: npt.NDArray[np.uint8] = cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
    return scaled
