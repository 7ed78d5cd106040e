"""Options that several commands share.

The settings models are declared where they are used (`labeling.settings`, `models.settings`, `training.settings`);
cyclopts makes an option and a key of `--config` of every field. Subclasses here only rename fields.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Group, Parameter
from pydantic import Field, create_model

from labeling.settings import SamplingSettings
from lake.settings import Settings
from lake.storage import StorageConfig
from models.settings import ModelSettings, WorldSettings

if TYPE_CHECKING:
    from lake.tables import Lake

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


class _Renamed(Settings):
    """Pickles as the settings model that it is made of: no other process knows the subclass."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by validation, which would take every field for one that was set.
        return object.__new__, (type(self).__base__,), self.__getstate__()


def renamed(model: type[Settings], **options: Parameter) -> Any:
    """Return a subclass of a settings model whose options are called otherwise than its fields."""
    fields = {}
    for name, option in options.items():
        field = model.model_fields[name]
        kind = Annotated.__class_getitem__((field.annotation, option, *field.metadata))  # type: ignore[attr-defined]
        fields[name] = kind, Field(field.default, description=field.description, discriminator=field.discriminator)
    return create_model(model.__name__, __base__=(model, _Renamed), **fields)  # type: ignore[call-overload]


if TYPE_CHECKING:
    ModelOptions: TypeAlias = ModelSettings
    SamplingOptions: TypeAlias = SamplingSettings
    WorldModelOptions: TypeAlias = WorldSettings
    LakeStorage: TypeAlias = StorageConfig
else:
    ModelOptions = renamed(ModelSettings, name=Parameter(name="--model"))
    SamplingOptions = renamed(SamplingSettings, sampler=Parameter(name="*"))
    # --world names the model; its other settings are told from those of the dynamics model by a prefix.
    WorldModelOptions = renamed(
        WorldSettings,
        name=Parameter(name="--world"),
        sampling=Parameter(name="*"),
        **{
            name: Parameter(name=f"--world-{name.replace('_', '-')}")
            for name in ("revision", "adapter", "dtype", "image_size", "batch_size")
        },
    )

    # Who reads no source has no bucket to read without credentials, or at their own cost.
    LakeStorage = renamed(StorageConfig, anonymous=Parameter(parse=False), requester_pays=Parameter(parse=False))

LakeUri = Annotated[str, Parameter(name="--lake", help="Lake: a folder, or s3://bucket/prefix.")]
Model = Annotated[ModelOptions, Parameter(name="*", group=_MODEL)]
World = Annotated[WorldModelOptions, Parameter(name="*", group=_WORLD)]
Sampling = Annotated[SamplingOptions, Parameter(name="*", group=_SAMPLING)]
Storage = Annotated[LakeStorage, Parameter(name="*", group=_STORAGE)]
SourceStorage = Annotated[StorageConfig, Parameter(name="*", group=_STORAGE)]
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
    from lake.tables import Lake

    lake = Lake(uri, config)
    lake.storage.check(lake.uri)
    lake.table("videos")
    return lake
