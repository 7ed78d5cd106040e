"""Content-derived identities: the same input has the same id on every machine and in every run."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

# Of a hundred videos without a split of their own.
TRAIN, VALIDATION = 90, 5
UPLOADS = "upload:"
"""The prefix of the uris of uploads."""
_NAMESPACE = uuid.UUID("6a1f8a6e-0f0e-5c57-9d1b-6f5d1c0f7a11")


def content_id(content: Any) -> str:
    """Sixteen hex digits that identify a JSON-serializable value, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def hashed_split(key: str) -> str:
    """Return a split that depends on nothing but the key: 90 % train, 5 % validation, 5 % test."""
    percent = int(content_id(key), 16) % 100
    return "train" if percent < TRAIN else "validation" if percent < TRAIN + VALIDATION else "test"


def upload_columns(*digests: bytes) -> dict[str, Any]:
    """Return the columns of a video that came with a request, named by the SHA-256 of each of its files."""
    content = hashlib.sha256(b"".join(digests)).hexdigest()
    uri = f"{UPLOADS}{content}"
    return {
        "video_id": video_id(uri, content),
        "uri": uri,
        "etag": content,
        "dataset": "live",
        "split": hashed_split(uri),
        "attempt": 1,
    }


def video_id(uri: str, etag: str) -> str:
    """Identity of one state of a video: the same uri with other bytes is another video."""
    return hashlib.sha256(f"{uri}\0{etag}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def triple_id(video: str, obs_pts: int, next_pts: int, labeler: str) -> str:
    """UUIDv5 of (video_id, obs_pts, next_pts, labeler_id)."""
    return str(uuid.uuid5(_NAMESPACE, f"{video}/{obs_pts}/{next_pts}/{labeler}"))
