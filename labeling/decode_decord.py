"""Decoding with decord2, which is imported as decord.

decord numbers frames and hands out pictures without their time. The times come from the packets in the container, in
the order of display, and are only right while decord loses nothing: where the counts differ the file is refused, and
an error ends the clip. docs/explanation/decisions/0002-decoder.md has what that leaves unnoticed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import cv2
import decord
import numpy as np
from decord._ffi.base import DECORDError

from labeling.decode_pyav import open_file, open_stream
from labeling.decoding import RGB, Frame, Gap, Gray
from lake.errors import DecodeError

decord.logging.set_level(decord.logging.QUIET)


def open_video(path: str) -> DecordDecoder:
    """Open the best video stream of a file. Raises DecodeError."""
    return DecordDecoder(path)


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
    """`decoding.Decoder` on decord."""

    def __init__(self, path: str) -> None:
        self._path = path
        # decord opens the path by itself and would follow a playlist: what is not a video container ends here.
        with open_file(path) as file:
            container, stream = open_stream(file)
            assert stream.time_base is not None
            self._time_base = stream.time_base.numerator, stream.time_base.denominator
            self._sample_aspect = float(stream.sample_aspect_ratio or 1)
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            container.close()
        self._pts = sorted(packet.pts for packet in packets if packet.pts is not None)
        self._keys = sorted(packet.pts for packet in packets if packet.pts is not None and packet.is_keyframe)
        self._reader = self._open()
        if len(self._reader) != len(self._pts):
            raise DecodeError(f"decord counts {len(self._reader)} frames, the container shows {len(self._pts)}")

    def _open(self) -> decord.VideoReader:
        try:
            return decord.VideoReader(self._path, ctx=decord.cpu(0), num_threads=1)
        except (DECORDError, RuntimeError) as error:
            raise DecodeError("decord cannot open it") from error

    @property
    def time_base(self) -> tuple[int, int]:
        """See `decoding.Decoder.time_base`."""
        return self._time_base

    def close(self) -> None:
        """See `decoding.Decoder.close`."""
        del self._reader

    def read(self, start_pts: int | None) -> Iterator[Frame | Gap]:
        """See `decoding.Decoder.read`."""
        index = 0 if start_pts is None else bisect_left(self._pts, start_pts)
        if start_pts is not None and self._pts[index : index + 1] != [start_pts]:
            raise DecodeError(f"there is no frame with PTS {start_pts} any more")
        last: int | None = None
        broken = False
        while index < len(self._pts):
            try:
                if broken or (last is None and index):
                    self._reader.seek_accurate(index)
                image = self._reader.next().asnumpy()
            except DECORDError:
                # It refuses everything after an error, so go on with a fresh one at the next key frame.
                broken, index, self._reader = True, self._next_key(index), self._open()
                continue
            pts, index = self._pts[index], index + 1
            if broken:
                yield Gap(last, pts, "DECORDError", "decord could not decode what is here")
            last, broken = pts, False
            yield DecordFrame(pts, image, self._sample_aspect)
        if last is None:
            raise DecodeError("decord decodes none of its frames")
        if broken:
            yield Gap(last, None, "DECORDError", "decord could not decode what is here")

    def _next_key(self, index: int) -> int:
        """The index of the first key frame after this index, or the number of frames."""
        later = self._keys[bisect_right(self._keys, self._pts[index]) :]
        return bisect_left(self._pts, later[0]) if later else len(self._pts)
