"""What `worldlake ingest` and `worldlake label SRC` say of a catalog."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lake.catalog import IngestCounts

UNREAD = "SELECT uri, error_type, message FROM failures WHERE stage IN ('probe', 'list') ORDER BY failed_at DESC"


def in_words(counts: IngestCounts, lake: str) -> list[str]:
    """The counts as a sentence, and a line for each sort of videos that is not in the table `videos`."""
    lines = [
        f"{counts.listed:,} videos listed = {counts.new:,} new + {counts.known:,} known + {counts.failed:,} failed"
        f" ({counts.skipped:,} other files skipped)"
    ]
    if counts.known_failed:
        lines.append(
            f"{counts.known_failed:,} of the known could not be read before and were left alone; "
            "--retry-failed tries them again"
        )
    if counts.forgotten:
        lines.append(
            f"{counts.forgotten:,} of the known were forgotten and left alone; `worldlake ingest` with --forgotten "
            "brings them back"
        )
    if counts.failed or counts.known_failed:
        lines.append(f"why they cannot be read: {why_unread(lake)}")
    return lines


def why_unread(lake: str) -> str:
    """The command that lists what could not be read, with the reasons."""
    return f'worldlake sql "{UNREAD}" --lake {shlex.quote(lake)}'


def any_failed(counts: IngestCounts) -> bool:
    """Whether a video of the sources cannot be read, now or when it was tried before."""
    return bool(counts.failed or counts.known_failed)
