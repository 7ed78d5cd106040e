"""`worldlake keys create|revoke|list`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from lake.errors import Refused
from lake.storage import StorageConfig
from worldlake import console
from worldlake.options import ConfigFile, Json, LakeUri, Storage, number, open_lake


def create(
    name: Annotated[str, Parameter(help="Name of the key, shown in the audit log.")],
    *,
    lake: LakeUri,
    scope: Annotated[list[str], Parameter(help="label, predict, read or admin (all); repeat for several.")],
    days: Annotated[float | None, Parameter(validator=number(0), help="Expire after N days. Default: never.")] = None,
    per_minute: Annotated[
        int, Parameter(validator=number(1), help="Requests a minute, on each ingress replica.")
    ] = 600,
    write: Annotated[
        bool, Parameter(help="Write what it labels to the lake, unless a request says ?write=no.")
    ] = False,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Make a key and print it, once: only its hash is kept, in the lake."""
    from serve.keys import Keys

    if days == 0:
        raise Refused("--days 0: the key would have expired already")
    made, token = Keys(open_lake(lake, storage)).create(
        name, tuple(scope), days=days, per_minute=per_minute, write=write
    )
    if json:
        console.print_json({"key_id": made.key_id, "name": made.name, "token": token})
    else:
        print(token)
    return 0


def revoke(
    name: Annotated[str, Parameter(help="Name of the key.")],
    *,
    lake: LakeUri,
    storage: Storage = StorageConfig(),
    config: ConfigFile = None,
) -> int:
    """Revoke a key for good. A running service refuses it within ten seconds."""
    from serve.keys import Keys

    Keys(open_lake(lake, storage)).revoke(name)
    console.out.print(f"revoked {name}: running services refuse it within ten seconds", markup=False)
    return 0


def list_(*, lake: LakeUri, storage: Storage = StorageConfig(), json: Json = False, config: ConfigFile = None) -> int:
    """Show the keys of a lake, without their secrets."""
    from serve.keys import Keys

    found: list[dict[str, Any]] = [
        key.model_dump(mode="json", exclude={"digest"}) for key in Keys(open_lake(lake, storage)).read()
    ]
    if json:
        console.print_json(found)
    else:
        columns = ("name", "scopes", "per minute", "expires")
        rows = [(k["name"], ", ".join(k["scopes"]), str(k["per_minute"]), k["expires_at"] or "never") for k in found]
        console.print_table("keys", columns, rows)
    return 0
