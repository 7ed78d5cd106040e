"""What a service is: which models it answers with, and how much it takes on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from labeling.labeler import LabelerSettings
from models.world_loading import WorldSettings


class Limits(BaseModel):
    """The most that one request may ask for. What is above is refused before any of it is decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_bytes: int = Field(32 << 20, ge=1024, description="bytes of a request")
    pixels: int = Field(40_000_000, ge=1, description="pixels of an uploaded image, by its header")
    pairs: int = Field(32, ge=1, description="frame pairs of a request")
    candidates: int = Field(16, ge=1, description="candidates of a prediction")
    deadline_s: float = Field(30.0, gt=0, description="seconds until a request is given up; a client may ask for less")
    videos: int = Field(2, ge=1, description="videos that an ingress samples at once")
    video_bytes: int = Field(512 << 20, ge=1024, description="bytes of a video")
    video_seconds: float = Field(3600, gt=0, description="length of a video")
    rows: int = Field(1000, ge=1, description="rows of a page of triples")
    sql_rows: int = Field(10_000, ge=1, description="rows of an answer of SQL; the rest is left out, and said to be")
    sql_bytes: int = Field(8 << 20, ge=1024, description="bytes of an answer of SQL, as JSON; a larger one is refused")
    sql_seconds: float = Field(10.0, gt=0, description="seconds until a query is stopped")


class ServeSettings(BaseModel):
    """The models, the policy that verdicts come from, and how they are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labeler: LabelerSettings = LabelerSettings()
    policy: str = Field("builtin", description="YAML file, or builtin or default: which live labels are accepted")
    world: WorldSettings | None = Field(WorldSettings(), description="None: no predictions")
    device: str | None = Field(None, description="cpu or cuda; None: GPUs where the cluster has any")
    replicas: tuple[int, int] = Field((1, 1), description="(least, most) of each model")
    batch_pairs: int = Field(64, ge=1, le=4096, description="frame pairs, or candidates, that a model sees at once")
    batch_wait_s: float = Field(0.01, ge=0, le=1, description="how long a batch waits for more")
    queue: int = Field(256, ge=1, description="requests that wait for a model; more are refused at once (503)")
    sources: tuple[str, ...] = Field((), description="s3:// prefixes under which requests may name videos")
    limits: Limits = Limits()
