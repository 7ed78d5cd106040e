"""The protocol of video decoders, and their registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt

from labeling.settings import DecoderName

Gray = npt.NDArray[np.uint8]
"""A luminance image, uint8, shape (height, width)."""
RGB = npt.NDArray[np.uint8]
"""A color image, uint8, shape (size, size, 3)."""


class Frame(Protocol):
    """A decoded frame. Its pixels are only good until the next frame is asked for."""

    @property
    def pts(self) -> int:
        """Presentation time in units of the decoder's `time_base`."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the coded picture in pixels."""
        ...

    def luma(self, step: int) -> Gray:
        """Every `step`-th pixel of every `step`-th row of the luminance as coded (not rotated), a view if possible."""
        ...

    def square(self, size: int) -> RGB:
        """The picture as displayed (rotated, pixels made square): shorter side resized to `size`, center cropped."""
        ...


@dataclass(frozen=True)
class Gap:
    """Frames that should be here and cannot be used; what is before and after does not belong to one clip.

    `start_pts` is the last usable frame before the gap (None: the stream starts with it) and `end_pts` the first one
    after it (None: the stream ends with it), in units of the decoder's `time_base`.
    """

    start_pts: int | None
    end_pts: int | None
    error_type: str
    message: str


@dataclass(frozen=True)
class Cut:
    """Another recording begins here, with the frame of this PTS: what is before and after belongs to two clips."""

    pts: int


class Decoder(Protocol):
    """An open video: its best video stream, decoded from start to end."""

    @property
    def time_base(self) -> tuple[int, int]:
        """Seconds per PTS unit, as (numerator, denominator)."""
        ...

    @property
    def note(self) -> str | None:
        """A note on how the file is read, where a user may not expect it."""
        ...

    def read(self, start_pts: int | None) -> Iterator[Frame | Gap | Cut]:
        """Yield usable frames in strictly increasing PTS, and what separates them; may be called again.

        With `start_pts` the first thing yielded is the frame of exactly that PTS, and what follows is the same as
        when reading from the start of the file. Raises DecodeError where that frame is not to be had, or where there
        is not a single usable frame.
        """
        ...

    def close(self) -> None:
        """Release the file and the codec."""
        ...


def open_video(path: str, decoder: DecoderName) -> Decoder:
    """Open the file with the decoder of that name. Raises DecodeError."""
    # Imported late, so that a process only pays for, and can only be hurt by, the libraries of the decoder it uses.
    module = import_module(f"labeling.decode_{decoder}")
    opened: Decoder = module.open_video(path)
    return opened
