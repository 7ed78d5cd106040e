"""Decoding with decord2, which is imported as decord.

decord numbers frames and hands out pictures without their time. The times come from the packets in the container, in
the order of display, and are only right while decord loses nothing. So PyAV takes over a file whose container has no
index, is damaged, or holds another number of frames than decord counts, and any file from decord's first error on.
docs/explanation/decisions/0002-decoder.md has the measurements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

import cv2
import decord
import numpy as np
from decord._ffi.base import DECORDError

from labeling import decode_pyav
from labeling.decode_pyav import PyAVDecoder
from labeling.decoding import RGB, Cut, Decoder, Frame, Gap, Gray
from labeling.frame_order import Damage
from labeling.pyav_frame import PyAVFrame
from lake.errors import DecodeError

decord.logging.set_level(decord.logging.QUIET)


# Containers with an index of frames, as FFmpeg calls them: in others decord loses count.
_INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


# A frame that is missing doubles the time to the next; rounding to milliseconds makes less of it.
MAX_STEP = 1.5


class _Unreliable(Exception):
    """decord's frames of a file cannot be relied on."""


def open_video(path: str) -> Decoder:
    """Open the best video stream of a file. Raises DecodeError."""
    # decord opens the path by itself and would follow a playlist: what is not a video container ends here.
    pyav = decode_pyav.open_video(path)
    try:
        first = next(iter(pyav.read(None)))
        if not isinstance(first, PyAVFrame) or not first.is_plain or pyav.may_be_interlaced:
            raise _Unreliable
        return DecordDecoder(path, pyav)
    except (_Unreliable, DecodeError):
        return pyav


def _times(pyav: PyAVDecoder) -> list[int]:
    """Return the PTS of all frames in order. Raises _Unreliable where the container does not vouch for them."""
    if pyav.container_format not in _INDEXED or pyav.is_numbered:
        raise _Unreliable
    times = []
    for packet in pyav.packets():
        if isinstance(packet, Damage | Cut):
            raise _Unreliable
        if packet.size and not packet.is_discard:
            if packet.pts is None:
                raise _Unreliable
            times.append(packet.pts)
    times.sort()
    # Where a picture was lost, or may have been, decord shows what its codec makes up.
    steps = [after - before for before, after in pairwise(times)]
    if steps and max(steps) > MAX_STEP * min(steps):
        raise _Unreliable
    return times


class DecordFrame:
    """A frame as decord hands it out: in RGB, and already the right way up."""

    def __init__(self, pts: int, image: RGB, sample_aspect: float) -> None:
        self.pts = pts
        self._image = image
        self._sample_aspect = sample_aspect

    @property
    def size(self) -> tuple[int, int]:
        """See `decoding.Frame.size`."""
        height, width = self._image.shape[:2]
        return width, height

    def luma(self, step: int) -> Gray:
        """See `decoding.Frame.luma`."""
        gray: Gray = cv2.cvtColor(np.ascontiguousarray(self._image[::step, ::step]), cv2.COLOR_RGB2GRAY)
        return gray

    def square(self, size: int) -> RGB:
        """See `decoding.Frame.square`."""
        width, height = self.size[0] * self._sample_aspect, float(self.size[1])
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        scaled = cv2.resize(
            self._image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        left, top = (width - size) // 2, (height - size) // 2
        square: RGB = scaled[top : top + size, left : left + size]
        return square


class DecordDecoder:
    """`decoding.Decoder` on decord, as far as that goes, and on PyAV from there."""

    def __init__(self, path: str, pyav: PyAVDecoder) -> None:
        self._pyav, self._has_read = pyav, False
        self._time_base, self._sample_aspect = pyav.time_base, pyav.sample_aspect
        self._pts = _times(pyav)
        try:
            self._reader: decord.VideoReader | None = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        except (DECORDError, RuntimeError) as error:
            raise _Unreliable from error
        if len(self._reader) != len(self._pts):
            raise _Unreliable

    @property
    def time_base(self) -> tuple[int, int]:
        """See `decoding.Decoder.time_base`."""
        return self._time_base

    @property
    def note(self) -> str | None:
        """See `decoding.Decoder.note`."""
        return self._pyav.note

    def close(self) -> None:
        """See `decoding.Decoder.close`."""
        self._reader = None
        self._pyav.close()

    def read(self, start_pts: int | None) -> Iterator[Frame | Gap | Cut]:
        """See `decoding.Decoder.read`."""
        first = 0 if start_pts is None else bisect_left(self._pts, start_pts)
        if start_pts is not None and self._pts[first : first + 1] != [start_pts]:
            raise DecodeError(f"there is no frame with PTS {start_pts} any more")
        last: int | None = None
        try:
            for pts, image in zip(self._pts[first:], self._images(first), strict=True):
                last = pts
                yield DecordFrame(pts, image, self._sample_aspect)
        except DECORDError:
            # After an error decord refuses everything or restarts its numbering, so it is not used any more.
            yield from self._rest(start_pts, last)

    def _images(self, first: int) -> Iterator[RGB]:
        assert self._reader is not None
        if first or self._has_read:
            self._reader.seek_accurate(first)
        self._has_read = True
        for _ in self._pts[first:]:
            yield self._reader.next().asnumpy()

    def _rest(self, start_pts: int | None, last: int | None) -> Iterator[Frame | Gap | Cut]:
        """Yield the frames that PyAV reads after decord's last one."""
        for item in self._pyav.read(start_pts):
            end = item.end_pts if isinstance(item, Gap) else item.pts
            if last is None or end is None or end > last:
                yield item
