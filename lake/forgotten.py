"""What a `forget` deleted stays away: rows of `failures` that name its uri by a hash and hold nothing else of it.

The newest row of a uri counts, so that bringing a video back is a row too. The etag is not part of the hash: a file
that was only touched must not come back as another video.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow.compute as pc

from lake.ids import video_id
from lake.tables import Lake, now

STAGE = "forget"
_FORGOTTEN, _BROUGHT_BACK = "Forgotten", "BroughtBack"


def key(uri: str) -> str:
    """The `video_id` of a forgotten uri in `failures`; no video has it, as no etag is empty."""
    return video_id(uri.encode("utf-8", "backslashreplace").decode(), "")


def keys(lake: Lake) -> set[str]:
    """The keys of all uris that are forgotten now."""
    columns = ["video_id", "error_type", "failed_at"]
    rows = lake.read("failures", columns, pc.field("stage") == STAGE).to_pylist()
    newest = {row["video_id"]: row["error_type"] for row in sorted(rows, key=lambda row: row["failed_at"])}
    return {one for one, what in newest.items() if what == _FORGOTTEN}


def record(lake: Lake, uris: Iterable[str]) -> None:
    """Let ingests leave these uris alone from now on."""
    known = keys(lake)
    missing = sorted({key(uri) for uri in uris} - known)
    message = "deleted on request and left alone since; `worldlake ingest SRC --forgotten` brings it back"
    lake.append("failures", [_row(one, _FORGOTTEN, message) for one in missing])


def bring_back(lake: Lake, uris: Iterable[str]) -> None:
    """Let ingests see these uris again."""
    message = "brought back by `worldlake ingest --forgotten`"
    lake.append("failures", [_row(key(uri), _BROUGHT_BACK, message) for uri in uris])


def _row(one: str, error_type: str, message: str) -> dict[str, Any]:
    return {
        "video_id": one,
        "scope": "video",
        "stage": STAGE,
        "error_type": error_type,
        "message": message,
        "transient": False,
        "failed_at": now(),
    }
