"""Options that several commands share.

The settings models are declared where they are used (`labeling.settings`, `models.settings`, `training.settings`);
cyclopts makes an option and a key of `--config` of every field. Subclasses here only rename fields.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from pydantic import Field

from labeling.samplers import Sampler
from labeling.samplers.motion import MotionSampler
from labeling.settings import SamplingSettings
from lake.storage import StorageConfig
from lake.tables import Lake
from models.loading import ModelSettings
from models.world import SamplingSettings as DrawingSettings
from models.world_loading import WorldSettings

_MODEL = Group("Model", sort_key=2)
_WORLD = Group("World model", sort_key=3)
_STORAGE = Group("Storage", sort_key=8)
_OUTPUT = Group("Output", sort_key=9)
_SAMPLING = Group("Sampling", sort_key=3)
VERIFICATION = Group("Verification", sort_key=4)
RESOURCES = Group("Resources", sort_key=5)
SELECTION = Group("Selection", sort_key=1)


def filled(kind: Any, value: str | None) -> None:
    """Refuse text that says nothing: it would count as not given."""
    if value is not None and not value.strip():
        raise ValueError("it is empty: leave the option out")


def number(least: float = -math.inf, most: float = math.inf) -> Any:
    """Return a validator of numbers in a closed range. `nan` passes every comparison, and `inf` never ends."""

    def check(kind: Any, value: float | None) -> None:
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            bounds = [f"at least {least:g}"] if least > -math.inf else []
            bounds += [f"at most {most:g}"] if most < math.inf else []
            raise ValueError(f"give a number, {' and '.join(bounds)}" if bounds else "give a number")

    return check


class ModelOptions(ModelSettings):
    """`--model` names a dynamics model."""

    name: Annotated[str, Parameter(name="--model")] = Field(
        "builtin", description="Dynamics model: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>."
    )


class SamplingOptions(SamplingSettings):
    """The settings of the sampler stand beside the others."""

    sampler: Annotated[Sampler, Parameter(name="*")] = MotionSampler()


class WorldModelOptions(WorldSettings):
    """`--world` names a world model, and `--world-<setting>` its settings that dynamics models have as well."""

    name: Annotated[str, Parameter(name="--world")] = Field(
        "builtin", description="World model, as --model; `none` for none where that is possible."
    )
    revision: Annotated[str | None, Parameter(name="--world-revision")] = Field(
        None, description=WorldSettings.model_fields["revision"].description
    )
    adapter: Annotated[str | None, Parameter(name="--world-adapter")] = Field(
        None, description=WorldSettings.model_fields["adapter"].description
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Parameter(name="--world-dtype")] = Field(
        "auto", description=WorldSettings.model_fields["dtype"].description
    )
    image_size: Annotated[int | None, Parameter(name="--world-image-size")] = Field(
        None, ge=8, le=4096, description=WorldSettings.model_fields["image_size"].description
    )
    batch_size: Annotated[int, Parameter(name="--world-batch-size")] = Field(
        16, ge=1, le=4096, description=WorldSettings.model_fields["batch_size"].description
    )
    sampling: Annotated[DrawingSettings, Parameter(name="*")] = DrawingSettings()


LakeUri = Annotated[str, Parameter(name="--lake", help="Lake: a folder, or s3://bucket/prefix.")]
Model = Annotated[ModelOptions, Parameter(name="*", group=_MODEL)]
World = Annotated[WorldModelOptions, Parameter(name="*", group=_WORLD)]
Sampling = Annotated[SamplingOptions, Parameter(name="*", group=_SAMPLING)]
Storage = Annotated[StorageConfig, Parameter(name="*", group=_STORAGE)]
Json = Annotated[bool, Parameter(name="--json", group=_OUTPUT, help="Print one JSON document instead of text.")]
ConfigFile = Annotated[
    Path | None,
    Parameter(
        name="--config",
        group=_OUTPUT,
        help="YAML file with the same keys as the options. Options on the command line win.",
    ),
]
TakeOver = Annotated[
    bool, Parameter(name="--take-over", help="End a live run first; what it has not committed is lost.")
]


def open_lake(uri: str, config: StorageConfig) -> Lake:
    """Return a lake that exists.

    Raises:
        Refused: there is none.
    """
    lake = Lake(uri, config)
    lake.storage.check(lake.uri)
    lake.table("videos")
    return lake
