"""How much a service takes on. In a file of its own because the proxies need it, and settings import torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

QUEUE = 256
"""Requests of one key that a replica works on, or lets wait; more are refused at once (503)."""


class Limits(BaseModel):
    """The most that one request may ask for. What is above is refused before any of it is decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_bytes: int = Field(32 << 20, ge=1024, description="bytes of a request")
    pixels: int = Field(40_000_000, ge=1, description="pixels of an uploaded image, by its header")
    pairs: int = Field(32, ge=1, description="frame pairs of a request")
    candidates: int = Field(16, ge=1, description="candidates of a prediction")
    deadline_s: float = Field(30.0, gt=0, description="seconds until a request is given up; a client may set less")
    videos: int = Field(2, ge=1, description="videos that an ingress receives and samples at once")
    video_bytes: int = Field(512 << 20, ge=1024, description="bytes of a video")
    video_seconds: float = Field(3600, gt=0, description="length of a video")
    rows: int = Field(1000, ge=1, description="rows of a page of triples")
    sql_rows: int = Field(10_000, ge=1, description="rows of an answer of SQL; the rest is left out, and said to be")
    sql_bytes: int = Field(8 << 20, ge=1024, description="bytes of an answer of SQL, as JSON; a larger one is refused")
    sql_seconds: float = Field(10.0, gt=0, description="seconds until a query is stopped")
