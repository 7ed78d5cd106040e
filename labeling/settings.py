"""The settings of labeling. Each becomes an option, a key of `--config`, and a line of the reference."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from labeling.samplers import Sampler
from labeling.samplers.motion import MotionSampler
from lake.settings import Settings

DecoderName = Literal["pyav", "decord"]


class SamplingSettings(Settings):
    """How a video becomes frame pairs. Every field changes which pairs exist, so all go into the labeler's identity."""

    sampler: Sampler = Field(MotionSampler(), description="How the frames of a clip are chosen.")
    # See `sampling.content_change`. Within shots of real footage the most seen is 0.3, in the fastest pans of the
    # sample world 0.49; of cuts between unrelated shots one in a hundred is less.
    shot_threshold: float = Field(
        0.5, gt=0, le=2, description="Cut a clip where consecutive frames differ by more (0: same, 1: unrelated)."
    )
    # The length of a Kinetics clip. It also bounds memory: only the candidates of one clip are held.
    max_clip_seconds: float = Field(10.0, gt=0, description="Maximum length of a clip in seconds.")
    # Work that is lost when a decode process has to be killed.
    segment_seconds: float = Field(60.0, gt=0, description="Seconds of video to decode at a time.")
    decoder: DecoderName = Field("pyav", description="Video decoder.")
    jpeg_quality: int = Field(95, ge=1, le=100, description="JPEG quality of stored images.")

    @field_validator("sampler", mode="before")
    @classmethod
    def _default_method(cls, value: Any) -> Any:
        return {"method": "motion", **value} if isinstance(value, dict) else value


def _node_label(text: str) -> str:
    if not re.fullmatch(r"[\w./-]+=[\w.-]+", text):
        raise ValueError("give KEY=VALUE, a label of Ray's nodes such as ray.io/node-group=cpu")
    return text


NodeLabel = Annotated[str, AfterValidator(_node_label)]
_AT_MOST = "as far as the memory of the nodes allows, and at most one per minute of video."


class RunSettings(Settings):
    """How a run uses the cluster; nothing here changes what is labeled or how."""

    decode_workers: int | None = Field(
        None, ge=1, description=f"Processes that decode and sample. Default: one per core, {_AT_MOST}"
    )
    label_workers: int | None = Field(
        None,
        ge=1,
        description=f"Processes that hold the model. Default: one per GPU, or per core without GPUs, {_AT_MOST}",
    )
    worker_cpus: float | None = Field(
        None,
        ge=0.01,
        description="CPU cores per decode and label worker. Default: an even share. A fixed number, such as 0.9, lets "
        "an autoscaler add nodes.",
    )
    decode_on: NodeLabel | None = Field(
        None, description="Label of the nodes that decode, such as ray.io/node-group=cpu. Default: any node."
    )
    label_on: NodeLabel | None = Field(None, description="Label of the nodes that hold the model. Default: any node.")
    segment_timeout: float = Field(
        300, ge=1, description="Seconds that a segment may take to decode before its process is killed."
    )
    # Longer than what gives no sign takes: new nodes that load a large model, the download of a large video, 64 pairs
    # of a slow model.
    stall_timeout: float = Field(
        3600, ge=1, description="Seconds without progress after which the run ends and says what it waits for."
    )
    commit_every: float = Field(10, ge=1, description="Seconds between commits.")
