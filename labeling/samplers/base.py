"""The protocol of samplers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from lake.settings import Settings

METHOD = "Which frames of a clip to keep. Default: motion."


# Times are in whole units of a video, so that a frame may come a hair too soon.
ROUNDING = 1e-3
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?s")
_MOST_FRAMES, _LEAST_SECONDS, _MOST_SECONDS = 10**6, 0.01, 1e6


def _interval(value: object) -> int | str:
    """Return frames as a number, and seconds in one spelling: it goes into the labeler's id."""
    text = str(value)
    if text.isdecimal() and text.isascii() and 1 <= int(text) <= _MOST_FRAMES:
        return int(text)
    if _SECONDS.fullmatch(text) and _LEAST_SECONDS <= float(text[:-1]) <= _MOST_SECONDS:
        return f"{float(text[:-1]):g}s"
    raise ValueError(
        f"give a number of frames (1 to {_MOST_FRAMES:,}), or seconds with an s after it ({_LEAST_SECONDS:g}s to "
        f"{_MOST_SECONDS:.0f}s), such as 20 or 0.7s"
    )


Interval = Annotated[int | str, BeforeValidator(_interval)]
"""A number of frames, or of seconds: ``20``, ``"0.7s"``."""


def amount(interval: Interval) -> float:
    """Return the number of frames, or of seconds, of an interval."""
    return float(interval.removesuffix("s")) if isinstance(interval, str) else interval


def in_words(interval: Interval) -> str:
    """Return an interval in words."""
    return f"{amount(interval):g} {'s' if isinstance(interval, str) else 'frames'}"


class BaseSampler(Settings, ABC):
    """Settings and choice of one method. A subclass adds a ``method``, a literal of its name.

    Every field changes which pairs exist, so all of them go into the labeler's identity.
    """

    measures_motion: ClassVar[bool] = False
    """True if `choose` needs the motion before each candidate, which costs a millisecond to measure."""

    @property
    @abstractmethod
    def stride(self) -> Interval:
        """Frames, or seconds, from one candidate to the next. Positions are counted in the same unit."""

    @property
    def least(self) -> str:
        """The condition for two frames of a clip to become a pair, in words."""
        return f"two frames {in_words(self.stride)} apart"

    @abstractmethod
    def choose(self, positions: Sequence[float], motion: Sequence[float]) -> list[int]:
        """Return the indices, in order, of the candidates of one clip to keep; neighbors among them become pairs.

        `positions` are frame numbers within the clip, or seconds since its start, as `stride` is. `motion` is that from
        the candidate before on, as a share of the picture's diagonal; 0 for the first candidate, and for all where
        `measures_motion` is false.
        """
