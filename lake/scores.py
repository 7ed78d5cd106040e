"""The scores of frame pairs. Each is a column of `triples` and `rejections`, and a reason that rejects a pair.

The order is that of the columns and of `reasons`. How a score is computed is in `labeling/verifiers/<name>.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """One nullable float64 column in `triples` and `rejections`; null means not computed."""

    name: str
    """The column, and the reason in `rejections.reasons`."""
    label: str
    """The name for people."""
    description: str
    noise: float = 0.0
    """How far rounding takes the score from 0 for frames in which nothing changes; 0 for a score that is not 0 there.

    A policy that has a bound this close to 0 is refused.
    """
    keep: Literal[">=", "<="] = ">="
    """The side of a threshold that the explorer keeps."""
    since: int = 1
    """The first schema version that has the column; see `lake.schemas`."""


# Motion is measured in steps of 1e-6. `direction` and `copy` differ by 1e-6 in fp32 and by up to 0.018 in bf16.
SCORES = (
    Score(
        "motion",
        "motion",
        "Mean optical flow between the two frames without the motion of the camera, as a share of the diagonal.",
        noise=1e-5,
    ),
    Score(
        "camera_motion",
        "camera motion",
        "Mean displacement that the motion of the camera explains, as a share of the diagonal.",
        noise=1e-5,
        keep="<=",
    ),
    Score("confidence", "confidence", "log p(action | obs, next_obs)."),
    Score("direction", "direction", "confidence − log p(action | next_obs, obs): does the order matter?", noise=0.02),
    Score("copy", "copy", "confidence − log p(action | obs, obs): does the change matter?", noise=0.02),
    Score("text", "text", "1 for a usable action text; 0 if it is empty, a refusal, a repetition, or too long."),
)

NAMES = tuple(score.name for score in SCORES)
