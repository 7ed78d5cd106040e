"""The settings of a service: its models and how they are run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from labeling.labeler import LabelerSettings
from models.settings import WorldSettings


class ServeSettings(BaseModel):
    """The models, the policy that verdicts come from, and how they are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labeler: LabelerSettings = LabelerSettings()
    policy: str = Field("builtin", description="YAML file, or builtin or default: which live labels are accepted")
    world: WorldSettings | None = Field(WorldSettings(), description="None: no predictions")
    device: str | None = Field(None, description="cpu or cuda; None: GPUs where the cluster has any")
    replicas: tuple[int, int] = Field((1, 1), description="(least, most) of each model")
    sources: tuple[str, ...] = Field((), description="s3:// prefixes under which requests may name videos")
