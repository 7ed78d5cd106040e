"""Keep every N-th frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from labeling.samplers.base import METHOD, BaseSampler, Interval


class UniformSampler(BaseSampler):
    """Frames at equal distances."""

    method: Literal["uniform"] = Field("uniform", description=METHOD)

    uniform_stride: Interval = Field(
        30, description="Distance from one kept frame to the next: frames, or seconds with an s after it, such as 1s."
    )

    @property
    def stride(self) -> Interval:
        """Distance from one kept frame to the next."""
        return self.uniform_stride

    def choose(self, positions: Sequence[float], motion: Sequence[float]) -> list[int]:
        """Keep every candidate."""
        return list(range(len(positions)))
