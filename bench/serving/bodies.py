"""Requests to `/v1/label`: a frame pair each, of clips that no model was trained on."""

from __future__ import annotations

import base64
import json

from labeling.images import encode_jpeg
from models.builtin.pairs import clip_pairs

FIRST_SEED = 8_000_000


def bodies(count: int) -> list[bytes]:
    """So many requests, each with a pair of its own."""
    made: list[bytes] = []
    seed = FIRST_SEED
    while len(made) < count:
        clip = clip_pairs(seed)
        frames = [base64.b64encode(encode_jpeg(frame, 95)).decode() for frame in clip.frames]
        made += [json.dumps({"pairs": [{"obs": frames[a], "next_obs": frames[b]}]}).encode() for a, b in clip.index]
        seed += 1
    return made[:count]
