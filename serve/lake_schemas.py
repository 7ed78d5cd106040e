"""Responses of the endpoints that read the lake; `serve.schemas` has the others."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from serve.row_models import row_model
from serve.schemas import LabelerOut

NEXT = "give it as `after` for the next page; null: this is the last"


if TYPE_CHECKING:

    class PairColumns(BaseModel):
        """The columns that the code reads."""

        triple_id: str
        obs_time_s: float | None

        def __getattr__(self, name: str) -> Any: ...

    class VideoColumns(BaseModel):
        """Likewise."""

        video_id: str

    class FailureColumns(BaseModel):
        """Likewise."""

else:
    PairColumns = row_model("triples", ("obs_pts", "next_pts", "time_base", "obs", "next_obs"))
    VideoColumns = row_model("videos", ("codec", "frames", "bytes", "etag", "added_at"), nullable=True)
    FailureColumns = row_model("failures", ("decoder",))


class Decided(PairColumns):
    """A frame pair that was decided: a row of `triples` or of `rejections`."""

    verdict: Literal["accepted", "rejected"]
    reasons: list[str] = Field(description="verifiers that reject it")
    obs: str | None = Field(None, description="JPEG as base64; null: not asked for, or rejected")
    next_obs: str | None = None


class TriplesPage(BaseModel):
    """A page of triples in the order asked for."""

    triples: list[Decided]
    next: str | None = Field(description=NEXT)


class RejectionsPage(BaseModel):
    """A page of rejected pairs, newest first."""

    rejections: list[Decided]
    next: str | None = Field(description=NEXT)


class PairsPage(BaseModel):
    """A page of the pairs of a video in the order of their time."""

    pairs: list[Decided]
    next: str | None = Field(description=NEXT)


class FailureOut(FailureColumns):
    """A row of `failures`."""


class FailuresPage(BaseModel):
    """A page of failures, newest first."""

    failures: list[FailureOut]
    next: str | None = Field(description=NEXT)


class DatasetOut(BaseModel):
    """The counts of a data set."""

    dataset: str | None
    videos: int
    accepted: int
    rejected: int


class VerifierOut(BaseModel):
    """The counts of a verifier."""

    verifier: str
    rejected: int = Field(description="pairs that it rejects")
    alone: int = Field(description="of these, pairs that no other verifier rejects")


class ActionOut(BaseModel):
    """How often an action was accepted."""

    action: str
    triples: int


class RunOut(BaseModel):
    """A run, by its newest event or heartbeat."""

    run_id: str
    kind: str
    status: str = Field(description="running, killed (it neither ended nor beats), or how it ended")
    labeler_id: str | None
    started_at: dt.datetime
    seconds: float
    pairs: int = Field(description="accepted and rejected by it")
    pairs_per_s: float | None


class OverviewOut(BaseModel):
    """The contents of the lake in numbers."""

    lake: str
    videos: int
    triples: int
    rejections: int
    failures: int = Field(description="attempts that failed")
    distinct_actions: int
    datasets: list[DatasetOut]
    verifiers: list[VerifierOut]
    actions: list[ActionOut] = Field(description="the most frequent ones")
    labelers: list[LabelerOut]
    runs: list[RunOut] = Field(description="the newest ones that decided pairs, oldest first")


class Histogram(BaseModel):
    """How a score is spread: bins of equal width; the outer ones include everything beyond."""

    score: str
    low: float
    high: float
    accepted: list[int]
    rejected: list[int]


class Kept(BaseModel):
    """How many of some pairs remain."""

    of: int
    kept: int


class KeptOut(BaseModel):
    """How many pairs a condition keeps."""

    accepted: Kept
    rejected: Kept


class RunsPage(BaseModel):
    """A page of runs, newest first."""

    runs: list[RunOut]
    next: str | None = Field(description=NEXT)


class Lineage(BaseModel):
    """A run at the other end of a version of `triples`, and how many triples the two share."""

    run_id: str
    kind: str
    version: int
    triples: int


class RunDetail(RunOut):
    """A run, what it came from and what came of it."""

    policy_id: str | None
    code_version: str | None
    host: str
    config: dict[str, Any]
    counts: dict[str, Any]
    timings: dict[str, Any]
    model_hashes: dict[str, Any]
    tables_read: dict[str, Any] = Field(description="versions by table")
    tables_written: dict[str, Any] = Field(description="versions by table, at its end")
    triples: int = Field(description="its rows in the lake now")
    rejections: int
    failures: int
    sources: list[Lineage] = Field(description="runs that wrote the triples which it read")
    readers: list[Lineage] = Field(description="runs that read triples which it wrote")


class VideoOut(VideoColumns):
    """A row of `videos`, and how many of its pairs were decided. An upload that was labeled live has no such row."""

    accepted: int
    rejected: int


class VideosPage(BaseModel):
    """A page of videos in the order of their names."""

    videos: list[VideoOut]
    next: str | None = Field(description=NEXT)


class FailureInTime(FailureOut):
    """A failure where its time is known."""

    start_s: float | None
    end_s: float | None


class VideoDetail(VideoOut):
    """A video, and what went wrong with it."""

    codec: str | None = None
    frames: int | None = None
    bytes: int | None = None
    added_at: dt.datetime | None = None
    finished_under: list[str] = Field(description="labelers")
    failures: list[FailureInTime]
