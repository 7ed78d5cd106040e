"""Text for people."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 video, 1,200 videos."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
