"""The protocol of samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from lake.settings import Settings

METHOD = "Which frames of a clip to keep. Default: motion."


class BaseSampler(Settings, ABC):
    """Settings and choice of one method. A subclass adds a ``method``, a literal of its name.

    Every field changes which pairs exist, so all of them go into the labeler's identity.
    """

    measures_motion: ClassVar[bool] = False
    """True if `choose` needs the motion before each candidate, which costs a millisecond to measure."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Frames from one candidate to the next."""

    @abstractmethod
    def choose(self, positions: Sequence[int], motion: Sequence[float]) -> list[int]:
        """Return the indices, in order, of the candidates of one clip to keep; neighbors among them become pairs.

        `positions` are frame numbers within the clip. `motion` is that since the candidate before, as a share of the
        picture's diagonal; 0 for the first candidate, and for all where `measures_motion` is false.
        """
