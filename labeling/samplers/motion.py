"""Keep the frames that the most motion led up to (Qiu et al., arXiv 2506.06006)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from labeling.samplers.base import METHOD, ROUNDING, BaseSampler, Interval, amount, in_words


class MotionSampler(BaseSampler):
    """At most K frames of a clip, at least I frames apart, those with the most motion first."""

    method: Literal["motion"] = Field("motion", description=METHOD)
    measures_motion: ClassVar[bool] = True

    frames_per_clip: int = Field(6, ge=2, description="Frames to keep of a clip (the paper's K).")
    min_interval: Interval = Field(
        20,
        description="Minimum distance between kept frames (the paper's I): frames, or seconds with an s (0.7s), which "
        "suit footage of few or many frames per second.",
    )
    # Half of I is the coarsest grid that can still place frames exactly I apart; at 25 to 30 frames/s it is a third of
    # a second, so that a short event falls between two candidates and the later one of the two, which shows its
    # outcome, gets its motion as score.
    score_stride: int = Field(
        10,
        ge=1,
        description="Measure motion every N-th frame; with --min-interval in seconds, twice per interval.",
    )

    @property
    def stride(self) -> Interval:
        """Distance from one scored candidate to the next."""
        return f"{amount(self.min_interval) / 2}s" if isinstance(self.min_interval, str) else self.score_stride

    @property
    def least(self) -> str:
        """See `BaseSampler.least`."""
        every = in_words(self.stride)
        return (
            f"two frames {in_words(self.min_interval)} apart (--min-interval) of those that are measured, every {every}"
        )

    def choose(self, positions: Sequence[float], motion: Sequence[float]) -> list[int]:
        """Choose greedily in order of motion; of equal ones the earlier wins.

        The first frame of a clip has motion 0, because what led up to it is unknown, so it is kept only where frames
        are left over.
        """
        chosen: list[int] = []
        apart = amount(self.min_interval) - ROUNDING
        for index in sorted(range(len(motion)), key=lambda i: (-motion[i], i)):
            if len(chosen) == self.frames_per_clip:
                break
            if all(abs(positions[index] - positions[other]) >= apart for other in chosen):
                chosen.append(index)
        return sorted(chosen)
