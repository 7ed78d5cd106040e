"""Numbers of frames from the index of an AVI file, and the length that its header tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# Bytes of an AVI chunk before its content: the index has where the one starts, FFmpeg where the other does.
CHUNK_HEADER = 8


class FrameNumbers:
    """Gives packets of an AVI file the number that its index has for their place.

    AVI frames have no time but their number, and after damage FFmpeg keeps counting as if nothing had been lost.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._numbers = {entry.pos + CHUNK_HEADER: entry.timestamp for entry in stream.index_entries}
        self._shift = 0
        self._end = max(self._numbers, default=0)
        self._has_matched = False

    def correct(self, packet: Packet[VideoStream]) -> bool:
        """Put the packet's times right; true if frames were lost before it."""
        if packet.dts is None or not self._numbers:
            return False
        number = self._numbers.get(packet.pos) if packet.pos is not None else None
        if number is None:
            # The index knows places behind this one, but not this one: bytes are missing before it, or there are too
            # many. Without an index at its end a file only has that of the packets that were read to open it.
            return self._has_matched and packet.pos is not None and packet.pos < self._end
        self._has_matched = True
        shift = number - packet.dts
        has_lost = shift != self._shift
        self._shift = shift
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        return has_lost


def is_cut_off(file: IO[bytes]) -> bool:
    """Return whether a file is shorter than its header says."""
    # Another handle: the demuxer has the position of this one.
    with Path(file.name).open("rb") as header:
        header.seek(4)
        return int.from_bytes(header.read(4), "little") + CHUNK_HEADER > os.fstat(header.fileno()).st_size
