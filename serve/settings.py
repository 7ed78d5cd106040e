"""What a service is: which models it answers with, and how much it takes on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from labeling.labeler import LabelerSettings
from models.settings import WorldSettings
from serve.limits import Limits as Limits


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
    queue: int = Field(256, ge=1, description="requests of one key that wait; more are refused at once (503)")
    sources: tuple[str, ...] = Field((), description="s3:// prefixes under which requests may name videos")
    limits: Limits = Limits()
