"""Options that several commands share, and `--config`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
import yaml

from lake.errors import Refused
from lake.storage import StorageConfig, split_s3
from lake.tables import Lake


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Options from a YAML file become the command's defaults; what is given on the command line wins."""
    if path is None:
        return None
    try:
        values = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise Refused(f"--config {path}: {error.strerror}: give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"--config {path} is not YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise Refused(f"--config {path}: expected `option: value` lines")
    parameters = {parameter.name: parameter for parameter in context.command.params if parameter.name != "config"}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in parameters:
            known = ", ".join(sorted(one.replace("_", "-") for one in parameters if one))
            raise Refused(f"--config {path}: no option {key} here; there are {known}")
        if name in defaults:
            raise Refused(f"--config {path}: {key} is given twice")
        defaults[name] = _of_type(f"--config {path}: {key}", parameters[name], value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


class _Loader(yaml.SafeLoader):
    """YAML that refuses what it would silently forget: all but the last value of a key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text, in quotes where it looks like a number"),
    Path: ((str,), "text, in quotes where it looks like a number"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}


def _of_type(what: str, parameter: Any, value: Any) -> Any:
    """A value of a YAML file as the parameter wants it: typer would make text of anything."""
    annotation = parameter.type_descriptor.annotation
    is_list = get_origin(annotation) is list
    kind = get_args(annotation)[0] if is_list else annotation
    if value is None or kind not in _KINDS:
        return value
    types, in_words = _KINDS[kind]
    if is_list:
        given = value if isinstance(value, list) else [value]
        # A mapping is text in braces on the command line.
        if not all(isinstance(one, (*types, dict)) for one in given):
            raise Refused(f"{what}: give {in_words}, or a list of such, not {value!r}")
        return given
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Refused(f"{what}: give {in_words}, not {value!r}")
    return value


def filled(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Refuse text that says nothing: it would count as not given."""
    if value is not None and not value.strip():
        raise typer.BadParameter("it is empty: leave the option out", ctx=context, param_hint=parameter.opts[0])
    return value


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
Endpoint = Annotated[
    str | None, typer.Option(callback=filled, help="S3 endpoint; default: the AWS environment and profile.")
]
Region = Annotated[
    str | None, typer.Option(callback=filled, help="S3 region; default: the AWS environment and profile.")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Also while a run is alive; what it has not committed is lost.")
]
Profile = Annotated[str | None, typer.Option(callback=filled, help="AWS profile; default: the AWS environment.")]


Anonymous = Annotated[
    list[str] | None,
    typer.Option(help="Bucket with videos to read without credentials, as public ones allow; may be repeated."),
]
RequesterPays = Annotated[
    list[str] | None,
    typer.Option(help="Bucket with videos whose reads you agree to pay for; may be repeated."),
]


def storage(
    endpoint_url: str | None,
    region: str | None,
    profile: str | None,
    anonymous: list[str] | None = None,
    requester_pays: list[str] | None = None,
) -> StorageConfig:
    """The one storage configuration of a command."""
    return StorageConfig(
        endpoint_url=endpoint_url,
        region=region,
        profile=profile,
        anonymous=_buckets("--anonymous", anonymous),
        requester_pays=_buckets("--requester-pays", requester_pays),
    )


def _buckets(option: str, given: list[str] | None) -> frozenset[str]:
    buckets = frozenset(split_s3(one)[0] for one in given or ())
    if "" in buckets:
        raise Refused(f"{option} names no bucket: give a bucket, such as open-videos or s3://open-videos")
    return buckets


def open_lake(uri: str, config: StorageConfig) -> Lake:
    """A lake that exists.

    Raises:
        Refused: there is none.
    """
    lake = Lake(uri, config)
    lake.storage.check(lake.uri)
    lake.table("videos")
    return lake
