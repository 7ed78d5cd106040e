"""The tables of a lake, column by column. Arrow schemas, statistics, API models, and the reference are made of this.

To add a column, add one line with `since` one above the newest. A new lake has it, and one that exists gets it by
`worldlake maintain --upgrade`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from lake.scores import SCORES

STRING, INT, SMALL_INT, FLOAT, BOOL, BYTES = pa.string(), pa.int64(), pa.int32(), pa.float64(), pa.bool_(), pa.binary()
TIME = pa.timestamp("us", "UTC")
STRINGS, FLOATS = pa.list_(STRING), pa.list_(pa.float32())


@dataclass(frozen=True)
class Column:
    """A column of a table. On disk every column is nullable, so that an older lake can get it."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = True
    """True if a row may lack it."""
    since: int = 1
    """The first schema version that has it."""
    is_text: bool = False
    """True for free text, which has no statistics."""

    @property
    def has_statistics(self) -> bool:
        """Return whether min, max, and null count are in the Delta log: of scalars, never of image bytes or lists."""
        return not (self.is_text or pa.types.is_binary(self.type) or pa.types.is_list(self.type))


@dataclass(frozen=True)
class Table:
    """A Delta table of a lake. Iterating over it gives its columns in order."""

    name: str
    description: str
    """A noun phrase for a row."""
    columns: tuple[Column, ...]

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)


_DECISION = (
    Column(
        "triple_id",
        STRING,
        "UUIDv5 of video_id, obs_pts, next_pts, and labeler_id.",
        nullable=False,
    ),
    Column("run_id", STRING, "The run that wrote the row."),
    Column("labeler_id", STRING, "Hash of all that decides which pairs exist, and their actions.", nullable=False),
    Column("policy_id", STRING, "Hash of the thresholds that decided."),
    Column("video_id", STRING, "The video; see `videos`.", nullable=False),
    Column("uri", STRING, "Where the video was, or `upload:` and a hash."),
    Column("dataset", STRING, "Data set of the video."),
    Column("split", STRING, "Split of the video: train, validation, or test."),
    Column("obs_pts", INT, "Presentation time of obs, in units of time_base."),
    Column("next_pts", INT, "Presentation time of next_obs, in units of time_base."),
    Column("time_base", STRING, "Seconds per unit of a PTS, as a fraction such as 1/90000."),
    Column("obs_time_s", FLOAT, "Time of obs in the video, in seconds."),
    Column("next_time_s", FLOAT, "Time of next_obs in the video, in seconds."),
    Column("action", STRING, "What happened between the two frames, in words.", nullable=False, is_text=True),
    *(Column(score.name, FLOAT, score.description, since=score.since) for score in SCORES),
    Column("labeled_at", TIME, "When the row was written."),
)

SPEC: tuple[Table, ...] = (
    Table(
        "videos",
        "one state (uri and etag) of a video",
        (
            Column("video_id", STRING, "Hash of uri and etag.", nullable=False),
            Column("uri", STRING, "Path, or s3:// address.", nullable=False),
            Column("dataset", STRING, "Data set that the video belongs to."),
            Column("split", STRING, "train, validation, or test; never cuts through a video."),
            Column("class_label", STRING, "Class of the video where its data set has classes."),
            Column("bytes", INT, "Size of the file."),
            Column("etag", STRING, "State of the file: the ETag in S3; size and modification time in a folder."),
            Column("codec", STRING, "Video codec, as FFmpeg names it."),
            Column("width", SMALL_INT, "Width in pixels."),
            Column("height", SMALL_INT, "Height in pixels."),
            Column("fps", FLOAT, "Average frames per second."),
            Column("frames", INT, "Number of frames that the header tells; null if it does not."),
            Column("duration_s", FLOAT, "Length in seconds."),
            Column("added_at", TIME, "When the video was ingested."),
        ),
    ),
    Table(
        "triples",
        "a verified `(obs, action, next_obs)`",
        (
            *_DECISION,
            Column("obs", BYTES, "The first frame: JPEG, square."),
            Column("next_obs", BYTES, "The second frame: JPEG, square."),
        ),
    ),
    Table(
        "rejections",
        "a frame pair that was labeled and not accepted",
        (
            *_DECISION,
            Column("reasons", STRINGS, "Scores that are out of bounds or null, in the order of columns."),
        ),
    ),
    Table(
        "progress",
        "a video that is finished under a labeler; sampled = accepted + rejected + failed + decided_before",
        (
            Column("video_id", STRING, "The video.", nullable=False),
            Column("labeler_id", STRING, "The labeler.", nullable=False),
            Column("run_id", STRING, "The run that finished it."),
            Column("sampled", INT, "Frame pairs in the video."),
            Column("accepted", INT, "Pairs that this run wrote into `triples`."),
            Column("rejected", INT, "Pairs that this run wrote into `rejections`."),
            Column("failed", INT, "Pairs that failed in this run; they are in `failures`."),
            Column("decided_before", INT, "Pairs that earlier runs decided."),
            Column("finished_at", TIME, "When it was finished."),
            Column(
                "note",
                STRING,
                "Why the video has no frame pair, and which of several video tracks was read; null if there is nothing "
                "to say.",
                since=2,
                is_text=True,
            ),
        ),
    ),
    Table(
        "failures",
        "an attempt that failed",
        (
            Column("video_id", STRING, "The video; null if a source could not be listed."),
            Column("uri", STRING, "The video or the source."),
            Column("labeler_id", STRING, "The labeler, if there was one."),
            Column("run_id", STRING, "The run, if it was one."),
            Column(
                "scope", STRING, "What failed: listing, video (it is not finished), span or pair (the rest of it is)."
            ),
            Column("triple_id", STRING, "The pair, if it was one."),
            Column("start_pts", INT, "PTS of the last usable frame before the span."),
            Column("end_pts", INT, "PTS of the first usable frame after the span."),
            Column(
                "stage",
                STRING,
                "Where: list, probe, manifest, read, decode, sample, annotate, account, tokenize, or forget for what a "
                "`worldlake forget` leaves behind.",
            ),
            Column("error_type", STRING, "Class of the error."),
            Column("message", STRING, "What it says, on one line.", is_text=True),
            Column("transient", BOOL, "Whether another attempt may succeed."),
            Column("attempt", SMALL_INT, "Number of the attempt, from 1."),
            Column("decoder", STRING, "Decoder and its version."),
            Column("failed_at", TIME, "When it failed."),
        ),
    ),
    Table(
        "reviews",
        "a person's judgment of a triple (nothing writes it yet)",
        (
            Column("triple_id", STRING, "The triple.", nullable=False),
            Column("verdict", STRING, "What the person says of the label."),
            Column("corrected_action", STRING, "What the action should be called."),
            Column("reviewer", STRING, "Name of the person."),
            Column("note", STRING, "Anything else."),
            Column("reviewed_at", TIME, "When."),
        ),
    ),
    Table(
        "tokens",
        "the image tokens of a triple under one tokenizer, so that epochs need not make them again",
        (
            Column("triple_id", STRING, "The triple.", nullable=False),
            Column("video_id", STRING, "Its video."),
            Column("tokenizer_id", STRING, "Hash of the tokenizer's weights and settings.", nullable=False),
            Column("obs_codes", BYTES, "Codes of obs: int32, little-endian, row by row."),
            Column("next_codes", BYTES, "Codes of next_obs, likewise."),
            Column("distances", FLOATS, "Squared distances of the features before quantization, code by code."),
            Column("tokenized_at", TIME, "When they were made."),
        ),
    ),
    Table(
        "runs",
        "an event of a run: its start or its end",
        (
            Column("run_id", STRING, "Sorts by the time of the start.", nullable=False),
            Column("kind", STRING, "ingest, label, serve, train, evaluate, maintain, forget, repair, or upgrade."),
            Column("status", STRING, "running, or how it ended."),
            Column("labeler_id", STRING, "The labeler, of a run that labels."),
            Column("policy_id", STRING, "The policy, of a run that labels."),
            Column("config", STRING, "Settings, as JSON.", is_text=True),
            Column("code_version", STRING, "Version of worldlake."),
            Column("model_hashes", STRING, "Hashes of the weights by file, as JSON.", is_text=True),
            Column("tables_read", STRING, "Versions by table, as JSON.", is_text=True),
            Column("tables_written", STRING, "Versions by table at its end, as JSON.", is_text=True),
            Column("counts", STRING, "What it counted, as JSON.", is_text=True),
            Column("timings", STRING, "Seconds by phase, as JSON.", is_text=True),
            Column("host", STRING, "Machine, its boot, and the PID namespace."),
            Column("pid", SMALL_INT, "Process."),
            Column("started_at", TIME, "When the run started."),
            Column("heartbeat_at", TIME, "When it last gave a sign of life."),
            Column("recorded_at", TIME, "When this row was written."),
        ),
    ),
)

DECISIONS = ("triples", "rejections")
"""The tables that decide pairs: each id is in one of them, once."""

IMAGES = ("obs", "next_obs")
"""Columns of encoded images, much larger than all others."""

SCHEMA_VERSION = max(column.since for table in SPEC for column in table)

TABLES: dict[str, pa.Schema] = {
    table.name: pa.schema([pa.field(column.name, column.type) for column in table]) for table in SPEC
}


def spec(table: str) -> Table:
    """Look a table up by its name."""
    return next(one for one in SPEC if one.name == table)


def missing_columns(schema: pa.Schema, table: str) -> list[pa.Field]:
    """Columns that an older table lacks, in their order."""
    return [field for field in TABLES[table] if field.name not in schema.names]


def completed(schema: pa.Schema, table: str) -> pa.Schema:
    """Add what an older table lacks to its schema: a dataset that is read with it has nulls there."""
    return pa.schema([*schema, *missing_columns(schema, table)])


def stats_columns(table: str) -> list[str]:
    """Columns with min/max/null counts in the Delta log."""
    return [column.name for column in spec(table) if column.has_statistics]
