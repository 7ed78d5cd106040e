"""Tombstones keep deleted videos away: rows of `failures` that name them by hashes and hold nothing else.

A tombstone names a uri and a state of it: `video_id` is the hash of the uri, `triple_id` that of the video's own id.
The newest event of a uri counts, so that bringing a video back is a row too. The etag is not part of the hash of the
uri: a file that was only touched must not come back as another video.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pyarrow.compute as pc

from lake.errors import Refused
from lake.failures import Failure
from lake.ids import video_id
from lake.storage import normalize
from lake.tables import Lake, now
from lake.writer import Writer

STAGE = "forget"
_REDACTED = "(forgotten)"
_FORGOTTEN, _BROUGHT_BACK = "Forgotten", "BroughtBack"


def key(name: str) -> str:
    """Return the hash of a uri, or of a video id, in a tombstone; no video has it as its id, as no etag is empty."""
    return video_id(name.encode("utf-8", "backslashreplace").decode(), "")


@dataclass(frozen=True)
class Tombstones:
    """The deleted videos. `newest` is when each uri was last deleted or brought back."""

    uris: frozenset[str] = frozenset()
    videos: frozenset[str] = frozenset()
    newest: Mapping[str, datetime] = field(default_factory=dict)

    def covers(self, uri: str | None = None, video: str | None = None) -> bool:
        """Return whether a row of this uri, or of this video, must not be in the lake."""
        if not self.uris:
            return False
        return (uri is not None and key(uri) in self.uris) or (video is not None and key(video) in self.videos)


def read(lake: Lake) -> Tombstones:
    """Return the tombstones of a lake."""
    columns = ["video_id", "triple_id", "error_type", "failed_at"]
    rows = lake.read("failures", columns, pc.field("stage") == STAGE).to_pylist()
    newest: dict[str, datetime] = {}
    state: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["failed_at"]):
        newest[row["video_id"]], state[row["video_id"]] = row["failed_at"], row["error_type"]
    uris = frozenset(one for one, what in state.items() if what == _FORGOTTEN)
    videos = {row["triple_id"] for row in rows if row["video_id"] in uris and row["triple_id"]}
    return Tombstones(uris, frozenset(videos), newest)


def keys(lake: Lake) -> frozenset[str]:
    """Return the hashes of all uris that are forgotten now."""
    return read(lake).uris


def record(writer: Writer, videos: Iterable[tuple[str, str]]) -> int:
    """Let every writer that opens from now on leave these states alone: (uri, video_id) of each; how many are new."""
    known = read(writer.lake)
    missing = sorted({pair for pair in videos if key(pair[0]) not in known.uris or key(pair[1]) not in known.videos})
    message = "deleted on request and left alone since; `worldlake ingest SRC --forgotten` brings it back"
    writer.append("failures", [_row(key(uri), _FORGOTTEN, message, known, key(video)) for uri, video in missing])
    return len(missing)


def bring_back(writer: Writer, uris: Iterable[str]) -> None:
    """Let ingests see these uris again."""
    known = read(writer.lake)
    message = "brought back by `worldlake ingest --forgotten`"
    writer.append("failures", [_row(key(uri), _BROUGHT_BACK, message, known) for uri in uris])


def redacted(config: str | None, away: Tombstones) -> str | None:
    """Return the configuration of a run (JSON) without sources that have a tombstone."""
    if not away.uris or '"sources"' not in (config or ""):
        return config
    parsed = json.loads(config or "{}")
    sources = parsed["sources"] if isinstance(parsed.get("sources"), list) else []
    # Those of a training are selections, and name no file.
    doomed = [one for one in sources if isinstance(one, str) and away.covers(normal(one))]
    if not doomed:
        return config
    return json.dumps(parsed | {"sources": [_REDACTED if one in doomed else one for one in sources]})


def normal(what: str) -> str:
    """Return a uri in the spelling of the tables, where it has one."""
    try:
        return normalize(what)
    except Refused:
        return what


def _row(one: str, error_type: str, message: str, known: Tombstones, video: str | None = None) -> dict[str, Any]:
    # Never before what it overrules, whatever the clock of this machine says.
    before = known.newest.get(one)
    return Failure(
        scope="video",
        stage=STAGE,
        error_type=error_type,
        message=message,
        video_id=one,
        triple_id=video,
        failed_at=max(now(), before + timedelta(microseconds=1)) if before else now(),
    ).to_row()
