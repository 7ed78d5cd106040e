"""`worldlake serve`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Group, Parameter

from lake.storage import StorageConfig
from worldlake.options import (
    VERIFICATION,
    ConfigFile,
    LakeUri,
    Model,
    ModelOptions,
    SourceStorage,
    World,
    WorldModelOptions,
    filled,
    number,
    open_lake,
)

_SERVICE = Group("Service", sort_key=1)


def serve(
    *,
    lake: LakeUri,
    host: Annotated[
        str, Parameter(group=_SERVICE, help="Address to listen at; any but this machine's own needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(group=_SERVICE, validator=number(1, 65_535), help="Port to listen at.")] = 8000,
    replicas: Annotated[str, Parameter(group=_SERVICE, help="Replicas per model; 1-4 autoscales.")] = "1",
    allow: Annotated[
        list[str] | None,
        Parameter(group=_SERVICE, help="s3:// prefix under which a request may name videos; repeat for several."),
    ] = None,
    model: Model = ModelOptions(),
    policy: Annotated[
        str | None,
        Parameter(
            group=VERIFICATION,
            validator=filled,
            help="YAML file of thresholds, or builtin or default: which labels are accepted. Default: by model.",
        ),
    ] = None,
    world: World = WorldModelOptions(),
    storage: SourceStorage = StorageConfig(),
    config: ConfigFile = None,
) -> int:
    """Answer over HTTP: label frame pairs, predict what actions lead to, and read the lake. Ctrl-C drains and ends.

    http://HOST:PORT shows the lake, http://HOST:PORT/openapi.json describes the API. Labels are those of `worldlake
    label` with the same model. Where the lake has no keys this prints an address with a token, for this machine only;
    for others: worldlake keys create NAME --scope label --lake LAKE
    """
    from worldlake.service import run_service, service_settings

    settings = service_settings(model, policy, world, replicas, allow)
    run_service(open_lake(lake, storage), settings, host, port)
    return 0
