"""`worldlake repair`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lake.storage import StorageConfig
from worldlake import console
from worldlake.options import ConfigFile, Json, LakeUri, Storage, TakeOver


def repair(
    *,
    lake: LakeUri,
    check: Annotated[bool, Parameter(help="Only look; exit code 3 when something is damaged.")] = False,
    take_over: TakeOver = False,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Find what makes a lake unreadable or untrue and repair it, with a record in the table `runs`.

    Looks for missing tables, half-written commits and checkpoints, files that a table names and that are gone or
    cannot be read, rows that share an id, pairs that are accepted and rejected, sums that do not balance, deleted
    videos that are still there, and files that killed runs left. Refused while a run is alive; `--check` is not.
    """
    from lake.repair import check as find_damage
    from lake.repair import repair as run_repair
    from lake.tables import Lake

    opened = Lake(lake, storage)
    opened.storage.check(opened.uri)
    found = find_damage(opened) if check else run_repair(opened, take_over=take_over)
    if json:
        console.print_json([damage.row() for damage in found])
        return 3 if check and found else 0
    for damage in found:
        console.out.print(damage.text(), markup=False)
    kinds = f"{len(found)} kind{'' if len(found) == 1 else 's'} of damage"
    console.out.print(f"{kinds} {'found' if check else 'repaired'}" if found else "nothing is damaged")
    return 3 if check and found else 0
