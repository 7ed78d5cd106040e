"""Keep every N-th frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from labeling.samplers.base import METHOD, BaseSampler


class UniformSampler(BaseSampler):
    """Frames at equal distances."""

    method: Literal["uniform"] = Field("uniform", description=METHOD)

    uniform_stride: int = Field(30, ge=1, description="Frames from one kept frame to the next; 30 is about a second.")

    @property
    def stride(self) -> int:
        """Frames from one kept frame to the next."""
        return self.uniform_stride

    def choose(self, positions: Sequence[int], motion: Sequence[float]) -> list[int]:
        """Keep every candidate."""
        return list(range(len(positions)))
