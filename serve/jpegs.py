"""JPEG files without all that is not the picture, and without decoding it."""

from __future__ import annotations

import re

_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
# Frame headers, Huffman tables, scans, quantization tables, restart intervals. 0xC8 is none, 0xCC arithmetic coding.
_PICTURE = frozenset({*range(0xC0, 0xD0), _SCAN, 0xDB, 0xDD} - {0xC8, 0xCC})
_ABOUT = frozenset({*range(0xE0, 0xF0), 0xFE})
# Two segments tell decoders which colors the components are. A longer one holds something else, such as a thumbnail.
_COLORS = {0xE0: (b"JFIF\0", 16), 0xEE: (b"Adobe", 14)}
# Within a scan 0xFF is followed by zero or a restart marker.
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def picture_only(content: bytes) -> bytes | None:
    """Return the segments and scans that a decoder needs, bit for bit; None for a file of another structure.

    Metadata, comments, thumbnails, further pictures, and what follows the end are left out.
    """
    if not content.startswith(_START):
        return None
    kept, place = [_START], len(_START)
    while True:
        marker = _AFTER_SCAN.match(content, place)
        if marker is None:
            return None
        kind, begin = content[marker.end() - 1], marker.end()
        if kind == _END[1]:
            return b"".join([*kept, _END])
        place = begin + int.from_bytes(content[begin : begin + 2], "big")
        if kind not in _PICTURE | _ABOUT or place < begin + 2 or place > len(content):
            return None
        segment = content[begin:place]
        if kind == _SCAN:
            after = _AFTER_SCAN.search(content, place)
            if after is None:
                return None
            segment, place = content[begin : after.start()], after.start()
        if kind in _PICTURE or _is_of_colors(kind, segment):
            kept.append(bytes((0xFF, kind)) + segment)


def _is_of_colors(kind: int, segment: bytes) -> bool:
    name, length = _COLORS.get(kind, (b"", 0))
    return len(segment) == length and segment[2:].startswith(name)
