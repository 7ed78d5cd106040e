"""Options that several commands share, and `--config`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
import yaml

from lake.errors import Refused
from lake.storage import StorageConfig
from lake.tables import Lake


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Options from a YAML file become the command's defaults; what is given on the command line wins."""
    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise Refused(f"--config {path}: {error.strerror}: give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"--config {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise Refused(f"--config {path}: expected `option: value` lines")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    names = {parameter.name for parameter in context.command.params} - {"config"}
    if unknown := sorted(set(values) - names):
        known = ", ".join(sorted(name.replace("_", "-") for name in names if name))
        raise Refused(f"--config {path}: no option {', '.join(unknown)} here; there are {known}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


def finite(context: typer.Context, parameter: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse what is a float and no number of seconds or hours: `nan` passes every comparison, `inf` never ends."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number", ctx=context, param_hint=parameter.opts[0])
    return value


Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with the same keys as the options.", is_eager=True, callback=read_config),
]
LakeUri = Annotated[str, typer.Option("--lake", help="Where the tables lie: a folder or s3://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Endpoint = Annotated[str | None, typer.Option(help="S3 endpoint; default: the AWS environment and profile.")]
Region = Annotated[str | None, typer.Option(help="S3 region; default: the AWS environment and profile.")]
Profile = Annotated[str | None, typer.Option(help="AWS profile; default: the AWS environment.")]


def storage(endpoint_url: str | None, region: str | None, profile: str | None) -> StorageConfig:
    """The one storage configuration of a command."""
    return StorageConfig(endpoint_url=endpoint_url, region=region, profile=profile)


def open_lake(uri: str, config: StorageConfig) -> Lake:
    """A lake that exists.

    Raises:
        Refused: there is none.
    """
    lake = Lake(uri, config)
    lake.storage.check(lake.uri)
    lake.table("videos")
    return lake
