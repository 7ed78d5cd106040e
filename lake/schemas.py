"""The tables of a lake. Every column a later feature needs exists from the start: a wider schema is dropped silently
by `create_write_transaction`, and adding a column makes appends of a live run fail."""

from __future__ import annotations

import pyarrow as pa

from lake.scores import NAMES as SCORE_NAMES

SCHEMA_VERSION = 1

DECISIONS = ("triples", "rejections")
"""The tables that decide pairs: each id is in one of them, once."""

_TIME = pa.timestamp("us", "UTC")
_TEXTS = pa.list_(pa.string())

_DECISION: list[tuple[str, pa.DataType]] = [
    ("triple_id", pa.string()),
    ("run_id", pa.string()),
    ("labeler_id", pa.string()),
    ("policy_id", pa.string()),
    ("video_id", pa.string()),
    ("uri", pa.string()),
    ("dataset", pa.string()),
    ("split", pa.string()),
    ("obs_pts", pa.int64()),
    ("next_pts", pa.int64()),
    ("time_base", pa.string()),
    ("obs_time_s", pa.float64()),
    ("next_time_s", pa.float64()),
    ("action", pa.string()),
    *[(name, pa.float64()) for name in SCORE_NAMES],
    ("labeled_at", _TIME),
]

IMAGES = ("obs", "next_obs")
"""Columns of encoded images, much larger than all others."""

TABLES: dict[str, pa.Schema] = {
    "videos": pa.schema(
        [
            ("video_id", pa.string()),
            ("uri", pa.string()),
            ("dataset", pa.string()),
            ("split", pa.string()),
            ("class_label", pa.string()),
            ("bytes", pa.int64()),
            ("etag", pa.string()),
            ("codec", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("fps", pa.float64()),
            ("frames", pa.int64()),
            ("duration_s", pa.float64()),
            ("added_at", _TIME),
        ]
    ),
    "triples": pa.schema([*_DECISION, ("obs", pa.binary()), ("next_obs", pa.binary())]),
    "rejections": pa.schema([*_DECISION, ("reasons", _TEXTS)]),
    "progress": pa.schema(
        [
            ("video_id", pa.string()),
            ("labeler_id", pa.string()),
            ("run_id", pa.string()),
            ("sampled", pa.int64()),
            ("accepted", pa.int64()),
            ("rejected", pa.int64()),
            ("failed", pa.int64()),
            ("decided_before", pa.int64()),
            ("finished_at", _TIME),
        ]
    ),
    "failures": pa.schema(
        [
            ("video_id", pa.string()),
            ("uri", pa.string()),
            ("labeler_id", pa.string()),
            ("run_id", pa.string()),
            ("scope", pa.string()),  # listing, video (it is not finished), span or pair (the rest of it is)
            ("triple_id", pa.string()),
            ("start_pts", pa.int64()),
            ("end_pts", pa.int64()),
            ("stage", pa.string()),
            ("error_type", pa.string()),
            ("message", pa.string()),
            ("transient", pa.bool_()),
            ("attempt", pa.int32()),
            ("decoder", pa.string()),
            ("failed_at", _TIME),
        ]
    ),
    "reviews": pa.schema(
        [
            ("triple_id", pa.string()),
            ("verdict", pa.string()),
            ("corrected_action", pa.string()),
            ("reviewer", pa.string()),
            ("note", pa.string()),
            ("reviewed_at", _TIME),
        ]
    ),
    # What a world model's image tokenizer made of the two images of a triple, so that epochs need not do it again.
    "tokens": pa.schema(
        [
            ("triple_id", pa.string()),
            ("video_id", pa.string()),
            ("tokenizer_id", pa.string()),
            ("obs_codes", pa.binary()),  # int32, little-endian, row by row
            ("next_codes", pa.binary()),
            ("distances", pa.list_(pa.float32())),  # squared, of the features before quantization, code by code
            ("tokenized_at", _TIME),
        ]
    ),
    "runs": pa.schema(
        [
            ("run_id", pa.string()),
            ("kind", pa.string()),
            ("status", pa.string()),
            ("labeler_id", pa.string()),
            ("policy_id", pa.string()),
            ("config", pa.string()),
            ("code_version", pa.string()),
            ("model_hashes", pa.string()),
            ("tables_read", pa.string()),
            ("tables_written", pa.string()),
            ("counts", pa.string()),
            ("timings", pa.string()),
            ("host", pa.string()),
            ("pid", pa.int32()),
            ("started_at", _TIME),
            ("heartbeat_at", _TIME),
            ("recorded_at", _TIME),
        ]
    ),
}


def stats_columns(table: str) -> list[str]:
    """Columns with min/max/null counts in the Delta log: all scalars but free text; never image bytes or lists."""
    free_text = {"action", "message", "config", "counts", "timings", "model_hashes", "tables_read", "tables_written"}
    return [
        field.name
        for field in TABLES[table]
        if field.name not in free_text and not pa.types.is_binary(field.type) and not pa.types.is_list(field.type)
    ]
