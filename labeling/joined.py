"""Files that hold several recordings, because somebody appended one file to another."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import IO

# A box of MP4 is its length in four bytes and its name in four; a length of 1 means that eight bytes follow with it.
BOX = 8
EBML, SEGMENT = 0x1A45DFA3, 0x18538067


def recordings(file: IO[bytes], container_format: str) -> int | None:
    """Return how many recordings a file holds; None if that only shows when it is read.

    Only for the containers that FFmpeg opens and leaves at the end of the first one, or whose times begin anew there.
    """
    count = _COUNTS.get(container_format)
    if count is None or not (size := os.fstat(file.fileno()).st_size):
        return 1
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        return count(content)


def _mp4(content: mmap.mmap) -> int:
    place = found = 0
    while place + BOX <= len(content):
        length, name = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + BOX]
        if length == 1:
            length = int.from_bytes(content[place + BOX : place + 2 * BOX], "big")
        found += name == b"moov"
        if length < BOX:
            break
        place += length
    return max(1, found)


def _matroska(content: mmap.mmap) -> int | None:
    place = found = 0
    while place < len(content):
        start, name = _number(content, place, keeps_marker=True)
        start, length = _number(content, start, keeps_marker=False)
        found += name == EBML
        if name == SEGMENT and length is None:
            return None
        if length is None or not found:
            break
        place = start + length
    return max(1, found)


def _number(content: mmap.mmap, place: int, *, keeps_marker: bool) -> tuple[int, int | None]:
    """Return the place after a number of variable length (RFC 8794, 4), and the number; None: it is not told."""
    first = content[place] if place < len(content) else 0
    length = 9 - first.bit_length()
    if length > 8:
        return len(content), None
    number = int.from_bytes(content[place : place + length], "big")
    mask = (1 << 7 * length) - 1
    value = number if keeps_marker else None if number & mask == mask else number & mask
    return place + length, value


def _flv(content: mmap.mmap) -> int:
    found, place = 0, 0
    while (place := content.find(b"FLV\x01", place)) >= 0:
        # A header of nine bytes, and the length of the tag before the first: zero.
        found += content[place + 5 : place + 13] == b"\0\0\0\x09\0\0\0\0"
        place += 1
    return max(1, found)


_COUNTS: dict[str, Callable[[mmap.mmap], int | None]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
    "matroska,webm": _matroska,
    "flv": _flv,
}
