"""Keep the frames that the most motion led up to (Qiu et al., arXiv 2506.06006)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from labeling.samplers.base import METHOD, BaseSampler


class MotionSampler(BaseSampler):
    """At most K frames of a clip, at least I frames apart, those with the most motion first."""

    method: Literal["motion"] = Field("motion", description=METHOD)
    measures_motion: ClassVar[bool] = True

    frames_per_clip: int = Field(6, ge=2, description="Frames to keep of a clip (the paper's K).")
    min_interval: int = Field(20, ge=1, description="Minimum distance in frames between kept frames (the paper's I).")
    # Half of I is the coarsest grid that can still place frames exactly I apart; at 25 to 30 frames/s it is a third of
    # a second, so that a short event falls between two candidates and the later one of the two, which shows its
    # outcome, gets its motion as score.
    score_stride: int = Field(10, ge=1, description="Measure motion every N-th frame.")

    @property
    def stride(self) -> int:
        """Frames from one scored candidate to the next."""
        return self.score_stride

    def choose(self, positions: Sequence[int], motion: Sequence[float]) -> list[int]:
        """Choose greedily in order of motion; of equal ones the earlier wins.

        The first frame of a clip has motion 0, because what led up to it is unknown, so it is kept only where frames
        are left over.
        """
        chosen: list[int] = []
        for index in sorted(range(len(motion)), key=lambda i: (-motion[i], i)):
            if len(chosen) == self.frames_per_clip:
                break
            if all(abs(positions[index] - positions[other]) >= self.min_interval for other in chosen):
                chosen.append(index)
        return sorted(chosen)
