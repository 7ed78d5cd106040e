"""Content-derived identities: the same input has the same id on every machine and in every run."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

_NAMESPACE = uuid.UUID("6a1f8a6e-0f0e-5c57-9d1b-6f5d1c0f7a11")


def content_id(content: Any) -> str:
    """Sixteen hex digits that identify a JSON-serializable value, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def video_id(uri: str, etag: str) -> str:
    """Identity of one state of a video: the same uri with other bytes is another video."""
    return hashlib.sha256(f"{uri}\0{etag}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def triple_id(video: str, obs_pts: int, next_pts: int, labeler: str) -> str:
    """UUIDv5 of (video_id, obs_pts, next_pts, labeler_id)."""
    return str(uuid.uuid5(_NAMESPACE, f"{video}/{obs_pts}/{next_pts}/{labeler}"))
