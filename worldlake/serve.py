"""`worldlake serve` and `worldlake keys`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lake.errors import Refused
from worldlake import console
from worldlake.options import (
    Anonymous,
    Config,
    Endpoint,
    Json,
    LakeUri,
    Profile,
    Region,
    RequesterPays,
    filled,
    open_lake,
    storage,
)

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Who may ask a service: bearer keys of a lake.")


def serve(
    lake: LakeUri,
    model: Annotated[
        str,
        typer.Option(help="Dynamics model: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>."),
    ] = "builtin",
    revision: Annotated[
        str | None, typer.Option(callback=filled, help="Commit, tag or branch of the model's repository.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(callback=filled, help="LoRA adapter of the dynamics model.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="YAML file, builtin or default: which labels are accepted.")
    ] = None,
    world: Annotated[str, typer.Option(help="World model, as --model; none: no predictions.")] = "builtin",
    world_adapter: Annotated[str | None, typer.Option(callback=filled, help="LoRA adapter of the world model.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    replicas: Annotated[str, typer.Option(help="Of each model; 1-4: as many of these as the load asks for.")] = "1",
    batch_pairs: Annotated[int, typer.Option(min=1, max=4096, help="Pairs that a model sees at once, at most.")] = 64,
    allow: Annotated[
        list[str] | None, typer.Option(help="s3:// prefix under which a request may name videos; may be repeated.")
    ] = None,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    anonymous: Anonymous = None,
    requester_pays: RequesterPays = None,
    config: Config = None,
) -> int:
    """Answer over HTTP: label frame pairs, predict what actions lead to, read the lake. Ctrl-C finishes and ends.

    http://HOST:PORT shows the lake, http://HOST:PORT/openapi.json describes the API. Labels are those of `worldlake
    label` with the same model. Where the lake has no keys this prints an address with a token, for this machine only;
    for others: worldlake keys create NAME --scope label --lake LAKE
    """
    from worldlake.service import Options, run_service

    chosen = Options(model, revision, adapter, policy, world, world_adapter, replicas, batch_pairs, allow)
    target = open_lake(lake, storage(endpoint_url, region, profile, anonymous, requester_pays))
    run_service(target, chosen, host, port)
    return 0


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for: it stands in the audit log.")],
    lake: LakeUri,
    scope: Annotated[list[str], typer.Option(help="label, predict, read or admin (all); may be repeated.")],
    days: Annotated[float | None, typer.Option(min=0, help="Expires after so many days; default: never.")] = None,
    per_minute: Annotated[int, typer.Option(min=1, help="Requests a minute, on each ingress replica.")] = 600,
    write: Annotated[
        bool, typer.Option("--write", help="What it labels goes into the lake, unless a request says ?write=no.")
    ] = False,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Make a key and print it, once: only its hash is kept, in the lake."""
    from serve.keys import Keys

    if days == 0:
        raise Refused("--days 0: the key would have expired already")
    made, token = Keys(open_lake(lake, storage(endpoint_url, region, profile))).create(
        name, tuple(scope), days=days, per_minute=per_minute, write=write
    )
    if json:
        console.print_json({"key_id": made.key_id, "name": made.name, "token": token})
    else:
        print(token)
    return 0


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Of the key.")],
    lake: LakeUri,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    config: Config = None,
) -> int:
    """Take a key back. A running service refuses it ten seconds later at the latest."""
    from serve.keys import Keys

    Keys(open_lake(lake, storage(endpoint_url, region, profile))).revoke(name)
    console.out.print(f"revoked {name}: running services refuse it within ten seconds", markup=False)
    return 0


@keys.command("list")
def list_(
    lake: LakeUri,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Show the keys of a lake, without their secrets."""
    from serve.keys import Keys

    found: list[dict[str, Any]] = [
        key.model_dump(mode="json", exclude={"digest"})
        for key in Keys(open_lake(lake, storage(endpoint_url, region, profile))).read()
    ]
    if json:
        console.print_json(found)
    else:
        columns = ("name", "scopes", "per minute", "expires")
        rows = [(k["name"], ", ".join(k["scopes"]), str(k["per_minute"]), k["expires_at"] or "never") for k in found]
        console.print_table("keys", columns, rows)
    return 0
