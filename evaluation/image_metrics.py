"""How near a predicted next observation is to the true one, where something changed and where nothing did.

All images are uint8 RGB, shape (batch, height, width, 3), of one size.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from models.protocols import Images

CHANGED = 16
"""Gray levels, after a light blur, by which a pixel changed: codecs and JPEG stay below, what one sees is above."""

COPIED_SHARE = 0.1
"""A prediction that changes fewer pixels than this share of those that truly change is a copy of obs."""

_BLUR = 1.0
# The structural similarity of two pixels is that of the 7 x 7 windows around them.
_WINDOW = 7
# Of errors below the rounding of gray levels nothing is known: no PSNR is above 58.9 dB.
_ROUNDING = 1 / 12

Mask = npt.NDArray[np.bool_]


def changed(obs: Images, next_obs: Images) -> Mask:
    """Which pixels differ visibly, bool, shape (batch, height, width)."""
    return np.stack([_differs(before, after) for before, after in zip(obs, next_obs, strict=True)])


def _differs(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> Mask:
    difference = before.astype(np.float32) - after
    mask: Mask = np.abs(cv2.GaussianBlur(difference, (0, 0), _BLUR)).max(axis=2) > CHANGED
    return mask


def picture_scores(obs: Images, next_obs: Images, predicted: Images, shown_obs: Images) -> list[dict[str, Any]]:
    """The scores of each prediction, by name; None where a region is empty.

    `changed_psnr_db` and `unchanged_psnr_db`: peak signal-to-noise ratio over the region that changes from obs to the
    true next_obs, and over the rest. `changed_ssim`: structural similarity (Wang et al. 2004), mean of its map over the
    changed region. `l1`: mean absolute difference over the whole picture, 0 to 1. `copied`: whether the prediction is a
    copy of obs (see `COPIED_SHARE`); pairs in which nothing changes have none.

    `shown_obs` is obs as the world model's tokenizer shows it. Compared with that, and not with obs itself, what the
    tokenizer cannot show does not count as a change.
    """
    masks, own_changes = changed(obs, next_obs), changed(shown_obs, predicted)
    return [
        {
            "changed_psnr_db": _psnr(truth, picture, mask),
            "unchanged_psnr_db": _psnr(truth, picture, ~mask),
            "changed_ssim": _ssim(truth, picture, mask),
            "l1": float(np.abs(truth.astype(np.float32) - picture).mean() / 255),
            "copied": bool(own.sum() < COPIED_SHARE * mask.sum()) if mask.any() else None,
        }
        for truth, picture, mask, own in zip(next_obs, predicted, masks, own_changes, strict=True)
    ]


def _psnr(truth: npt.NDArray[np.uint8], picture: npt.NDArray[np.uint8], mask: Mask) -> float | None:
    if not mask.any():
        return None
    error = float(np.mean((truth[mask].astype(np.float64) - picture[mask]) ** 2))
    return float(10 * np.log10(255**2 / max(error, _ROUNDING)))


def _ssim(truth: npt.NDArray[np.uint8], picture: npt.NDArray[np.uint8], mask: Mask) -> float | None:
    if not mask.any() or min(truth.shape[:2]) < _WINDOW:
        return None
    _, similarity = structural_similarity(truth, picture, win_size=_WINDOW, channel_axis=2, data_range=255, full=True)
    return float(similarity[mask].mean())
