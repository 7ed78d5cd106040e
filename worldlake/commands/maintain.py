"""`worldlake maintain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from lake.errors import Refused
from lake.storage import StorageConfig
from worldlake import console
from worldlake.options import ConfigFile, Json, LakeUri, Storage, number, open_lake

if TYPE_CHECKING:
    from lake.tables import Lake

_KEEP_HOURS = 24


def maintain(
    *,
    lake: LakeUri,
    upgrade: Annotated[
        bool, Parameter(help="Only add the columns that this version of worldlake has and an older lake lacks.")
    ] = False,
    cluster: Annotated[bool, Parameter(help="Also sort pairs by data set and video: a rewrite.")] = False,
    keep_hours: Annotated[
        int, Parameter(validator=number(24, 87_600), help="Keep files that were needed in the last N hours.")
    ] = _KEEP_HOURS,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Compact the tables and delete files that are no longer needed. While a run is alive, only compact."""
    if upgrade:
        if cluster or keep_hours != _KEEP_HOURS:
            raise Refused("--upgrade only adds columns: leave out --cluster and --keep-hours")
        return _upgrade(open_lake(lake, storage), json)
    from lake.maintenance import maintain as run_maintenance

    done = run_maintenance(open_lake(lake, storage), cluster=cluster, keep_hours=keep_hours)
    if json:
        console.print_json({name: vars(table) for name, table in done.items()})
        return 0
    rows = [
        (name, table.files_before, table.files_after, "-" if table.deleted is None else table.deleted)
        for name, table in done.items()
    ]
    console.print_table("maintained", ("table", "files before", "files after", "deleted"), rows)
    if any(table.deleted is None for table in done.values()):
        console.log.warning("nothing was deleted, as a run is alive: run the command again when it has ended")
    return 0


def _upgrade(lake: Lake, json: bool) -> int:
    from lake.upgrade import upgrade

    added = upgrade(lake)
    if json:
        console.print_json(added)
    elif added:
        rows = [(name, ", ".join(columns) or "-") for name, columns in added.items()]
        console.print_table("upgraded", ("table", "new columns"), rows)
    else:
        console.log.info("nothing to upgrade: the lake has every column")
    return 0
