"""Requests and responses of the API, with examples, from which the OpenAPI document is made."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, EncodedBytes, EncoderProtocol, Field


class _Base64(EncoderProtocol):
    """Base64 as it comes: in either alphabet, with or without padding and line breaks, or in a data URL."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        """Return the bytes. Raises ValueError for what is not base64."""
        if data[:5].lower() == b"data:":
            about, comma, data = data.partition(b",")
            if not comma or not about.lower().endswith(b";base64"):
                raise ValueError("a data URL has to be data:<type>;base64,<data>")
        data = data.translate(_ALPHABET, delete=b" \t\r\n").rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """The other way."""
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> str:
        """As the OpenAPI document has it."""
        return "base64"


_ALPHABET = bytes.maketrans(b"-_", b"+/")
ImageBytes = Annotated[bytes, EncodedBytes(encoder=_Base64)]

WriteMode = Literal["no", "soon", "durable"]

Action = Annotated[str, Field(min_length=1, max_length=1000, examples=["the red shape moves left"])]


class PairIn(BaseModel):
    """Two images of the same scene, the first taken shortly before the second: JPEG, PNG or WebP, as base64."""

    model_config = ConfigDict(extra="forbid")

    obs: ImageBytes
    next_obs: ImageBytes


class LabelIn(BaseModel):
    """Frame pairs to label."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[PairIn] = Field(min_length=1)


def json_or_files(model: type[BaseModel], *files: str) -> dict[str, Any]:
    """For the OpenAPI document: a body that is JSON of a model, or a form with these files."""
    form = {
        "type": "object",
        "required": list(files),
        "properties": {name: {"type": "string", "format": "binary"} for name in files},
    }
    json_schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    content = {"application/json": {"schema": json_schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def encoded(content: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(content).decode()


class Label(BaseModel):
    """The action between two frames, the scores of the model, and the verdict of the policy."""

    triple_id: str = Field(
        examples=["0c0f3c5e-0d5f-5f0f-8d0e-6d1f0c7b2a11"],
        description="follows from the images and the labeler: the same pair has the same id",
    )
    action: str | None = Field(examples=["the red shape moves left"], description="null: this pair failed")
    confidence: float | None = Field(examples=[-0.004], description="mean log-probability per token of the action")
    scores: dict[str, float | None] = Field(
        examples=[
            {"motion": 0.02, "camera_motion": 0.0, "confidence": -0.004, "direction": 4.2, "copy": 3.9, "text": 1.0}
        ],
        description="as the table triples has them",
    )
    verdict: Literal["accepted", "rejected", "failed"]
    reasons: list[str] = Field(examples=[[]], description="verifiers that reject it; of a failure, its message")


class LabelOut(BaseModel):
    """Labels in the order of the pairs."""

    labeler_id: str = Field(examples=["6f70371c69f4950b"], description="that of `worldlake label` with the same model")
    policy_id: str = Field(examples=["dd43f367fc4eb960"])
    write: WriteMode = Field(description="durable: the labels are in the lake; soon: they are tried for ten minutes")
    labels: list[Label]


class VideoTriple(Label):
    """A labeled pair of a video, as an event has it."""

    obs_time_s: float | None
    next_time_s: float | None
    obs: str | None = Field(description="JPEG as base64; null for rejected pairs of a cataloged video")
    next_obs: str | None


class VideoIn(BaseModel):
    """A video in a place that the service may read."""

    model_config = ConfigDict(extra="forbid")

    uri: str = Field(max_length=2000, examples=["s3://bucket/footage/0001.mp4"])


class PredictIn(BaseModel):
    """An image (JPEG, PNG or WebP, as base64) and an action: what will it look like afterwards?"""

    model_config = ConfigDict(extra="forbid")

    image: ImageBytes
    action: Action
    n: int = Field(4, ge=1, description="candidates, of which the dynamics model chooses one; 1: plain sampling")
    seed: int = Field(0, ge=0, lt=2**32, description="the same seed draws the same candidates")
    all_candidates: bool = Field(False, description="also return the candidates that were not chosen")


class Candidate(BaseModel):
    """A predicted next observation."""

    image: str = Field(description="PNG as base64, of the world model's size")
    score: float | None = Field(
        examples=[-0.01], description="verification: log p(action | obs, image), mean per token; null: none was given"
    )


class PredictOut(BaseModel):
    """The candidate in which the dynamics model sees the action most clearly."""

    best: Candidate
    candidates: list[Candidate] | None = Field(None, description="all of them, in the order in which they were drawn")


class SqlIn(BaseModel):
    """One SELECT over the tables of the lake."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(
        min_length=1, max_length=20_000, examples=["SELECT action, count(*) AS pairs FROM current GROUP BY action"]
    )


class SqlOut(BaseModel):
    """Rows as objects; images are base64."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool = Field(description="there were more rows")


class LabelerOut(BaseModel):
    """Who has labeled in this lake."""

    labeler_id: str
    policy_id: str | None
    triples: int
    rejections: int
