"""Rows between the stages: one Arrow schema for frame pairs and for failures."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lake.errors import ChildLost, DecodeError, SourceChanged
from lake.failures import Failure, Scope
from lake.scores import NAMES
from lake.store_errors import is_transient

VIDEO: list[tuple[str, pa.DataType]] = [
    ("video_id", pa.string()),
    ("uri", pa.string()),
    ("etag", pa.string()),
    ("dataset", pa.string()),
    ("split", pa.string()),
    ("attempt", pa.int32()),
]

WORK = pa.schema([*VIDEO, ("duration_s", pa.float64()), ("decided", pa.list_(pa.string()))])
"""A video to label; `decided` are the ids of its pairs that are in the tables already."""

SAMPLES = pa.schema(
    [
        *VIDEO,
        # A frame pair, when `triple_id` is not null.
        ("triple_id", pa.string()),
        ("obs_pts", pa.int64()),
        ("next_pts", pa.int64()),
        ("time_base", pa.string()),
        ("obs_time_s", pa.float64()),
        ("next_time_s", pa.float64()),
        ("obs", pa.binary()),
        ("next_obs", pa.binary()),
        ("motion", pa.float64()),
        ("camera_motion", pa.float64()),
        # A failure of this pair, of a span of the video or of all of it, when `error_type` is not null.
        ("scope", pa.string()),
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("stage", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("transient", pa.bool_()),
        # The end of the video, when `sampled` is not null: the number of its pairs, in this run and before, and of its
        # spans that failed, and a note.
        ("sampled", pa.int64()),
        ("spans_failed", pa.int64()),
        ("note", pa.string()),
    ]
)

LABELED = pa.schema(
    [
        *SAMPLES,
        ("action", pa.string()),
        # Motion is measured while the frames are sampled.
        *[(name, pa.float64()) for name in NAMES if name not in SAMPLES.names],
    ]
)

VERIFIED = pa.schema([*LABELED, ("reasons", pa.list_(pa.string()))])


def block(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a block of the stream; columns that a row leaves out are null."""
    return pa.Table.from_pylist(rows, schema=schema)


def describe(error: Exception, scope: Scope = "video") -> Failure:
    """Say why reading or decoding a video failed."""
    is_decoding = isinstance(error, DecodeError | ChildLost)
    is_reading = isinstance(error, SourceChanged | OSError) or is_transient(error)
    stage = "decode" if is_decoding else "read" if is_reading else "sample"
    return Failure.of(error, scope=scope, stage=stage, transient=is_transient(error))
