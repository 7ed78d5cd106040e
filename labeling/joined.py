"""Files that hold several recordings, because somebody appended one file to another."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import IO

# A box of MP4 is its length in four bytes and its name in four; a length of 1 means that eight bytes follow with it.
BOX = 8
# Parts of a file that are looked at: a hostile one has millions.
MAX_PARTS = 10_000
EBML, SEGMENT = 0x1A45DFA3, 0x18538067


def recordings(file: IO[bytes], container_format: str) -> list[int] | None:
    """Return where the recordings of a file start, in bytes; None if that only shows when it is read.

    Only for the containers that FFmpeg opens and leaves at the end of the first one, or whose times begin anew there.
    """
    find = _FIND.get(container_format)
    if find is None or not (size := os.fstat(file.fileno()).st_size):
        return [0]
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        found = find(content)
    return found if found is None else found or [0]


def _mp4(content: mmap.mmap) -> list[int]:
    place = 0
    found: list[int] = []
    for _ in range(MAX_PARTS):
        if place + BOX > len(content):
            break
        length, name = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + BOX]
        if length == 1:
            length = int.from_bytes(content[place + BOX : place + 2 * BOX], "big")
        if name == b"moov":
            found.append(place)
        if length < BOX:
            break
        place += length
    return found


def _avi(content: mmap.mmap) -> list[int]:
    place = 0
    found: list[int] = []
    for _ in range(MAX_PARTS):
        if content[place : place + 4] != b"RIFF":
            break
        # Long files have further parts, of the type AVIX.
        if content[place + BOX : place + BOX + 4] == b"AVI ":
            found.append(place)
        length = int.from_bytes(content[place + 4 : place + BOX], "little")
        place += BOX + length + length % 2
    return found


def _matroska(content: mmap.mmap) -> list[int] | None:
    place = 0
    found: list[int] = []
    for _ in range(MAX_PARTS):
        if place >= len(content):
            break
        start, name = _number(content, place, keeps_marker=True)
        start, length = _number(content, start, keeps_marker=False)
        if name == EBML:
            found.append(place)
        if name == SEGMENT and length is None:
            return None
        if length is None or not found:
            break
        place = start + length
    return found


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


def _flv(content: mmap.mmap) -> list[int]:
    place = -1
    found: list[int] = []
    while (place := content.find(b"FLV\x01", place + 1)) >= 0 and len(found) < MAX_PARTS:
        # A header of nine bytes, and the length of the tag before the first: zero.
        if content[place + 5 : place + 13] == b"\0\0\0\x09\0\0\0\0":
            found.append(place)
    return found


_FIND: dict[str, Callable[[mmap.mmap], list[int] | None]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
    "avi": _avi,
    "matroska,webm": _matroska,
    "flv": _flv,
}
