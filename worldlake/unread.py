"""Lines about videos that could not be read."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lake.text import counted

if TYPE_CHECKING:
    from lake.catalog import IngestCounts

UNREAD = "SELECT uri, error_type, message FROM failures WHERE stage IN ('probe', 'list') ORDER BY failed_at DESC"


def warnings(counts: IngestCounts, lake: str) -> list[str]:
    """Return a line for each sort of videos that an ingest could not read; the last says how to find out why."""
    lines = []
    if counts.failed:
        lines.append(f"{counted(counts.failed, 'file')} could not be read")
    if counts.known_failed:
        lines.append(
            f"skipped {counted(counts.known_failed, 'file')} that could not be read before; --retry-failed tries again"
        )
    return [*lines[:-1], f"{lines[-1]}; why: {why_unread(lake)}"] if lines else []


def why_unread(lake: str) -> str:
    """Return the command that lists what could not be read, with the reasons."""
    return f'worldlake sql "{UNREAD}" --lake {shlex.quote(lake)}'
