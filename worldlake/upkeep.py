"""Commands that keep a lake in order: `maintain`, `forget`, `repair`."""

from __future__ import annotations

from typing import Annotated

import typer

from lake.tables import Lake
from worldlake import console
from worldlake.options import Config, Endpoint, Json, LakeUri, Profile, Region, TakeOver, open_lake, storage


def maintain(
    lake: LakeUri,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also sort pairs by data set and video: a rewrite.")
    ] = False,
    keep_hours: Annotated[
        int, typer.Option(min=24, max=87_600, help="Keep files that were needed in the last hours.")
    ] = 24,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Compact the tables and delete the files that nothing needs any more; while a run is alive, only compact."""
    from lake.maintenance import maintain as maintain_

    done = maintain_(open_lake(lake, storage(endpoint_url, region, profile)), cluster=cluster, keep_hours=keep_hours)
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


def forget(
    what: Annotated[
        str, typer.Argument(metavar="VIDEO|DATASET", help="A video_id, the uri of a video, or a data set.")
    ],
    lake: LakeUri,
    take_over: TakeOver = False,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Delete a video or a data set from every table and version, and its bytes from the store.

    The source files are not touched, and later ingests of them leave it alone: a hash of its uri is kept for that
    (`worldlake ingest SRC --forgotten` brings it back). Lists the models trained on it, and the trainings whose pinned
    versions it takes away. Refused while a run is alive.
    """
    from lake.forget import forget as forget_

    gone = forget_(open_lake(lake, storage(endpoint_url, region, profile)), what, take_over=take_over)
    trained = [run.run_id for run in gone.trained]
    if json:
        counts = {"videos": gone.videos, "rows": dict(gone.rows), "files_deleted": gone.deleted}
        console.print_json({**counts, "trained": trained, "unpinned": gone.unpinned})
        return 0
    rows = ", ".join(f"{count:,} {name}" for name, count in gone.rows.items() if count)
    what_went = f"forgot {gone.videos:,} videos" if gone.videos else "forgotten before"
    console.out.print(f"{what_went}: {rows or 'no rows'}; {gone.deleted:,} files deleted", markup=False)
    if trained:
        console.out.print(f"models trained on them: {', '.join(trained)}", markup=False)
    if gone.unpinned:
        console.out.print(f"trainings that cannot be repeated any more: {', '.join(gone.unpinned)}", markup=False)
    return 0


def repair(
    lake: LakeUri,
    check: Annotated[bool, typer.Option("--check", help="Only look: exit code 3 when something is damaged.")] = False,
    take_over: TakeOver = False,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Find what makes a lake unreadable or untrue and repair it, with a record in the table `runs`.

    Looks for missing tables, half-written commits and checkpoints, files that a table names and that are gone or
    cannot be read, rows that share an id, pairs that are accepted and rejected, sums that do not balance, forgotten
    videos that are still there, and files that killed runs left. Refused while a run is alive; `--check` is not.
    """
    from lake.repair import check as check_
    from lake.repair import repair as repair_

    opened = Lake(lake, storage(endpoint_url, region, profile))
    opened.storage.check(opened.uri)
    found = check_(opened) if check else repair_(opened, take_over=take_over)
    if json:
        console.print_json([damage.row() for damage in found])
        return 3 if check and found else 0
    for damage in found:
        console.out.print(damage.text(), markup=False)
    kinds = f"{len(found)} kind{'' if len(found) == 1 else 's'} of damage"
    counted = f"{kinds} {'found' if check else 'repaired'}" if found else "nothing is damaged"
    console.out.print(counted)
    return 3 if check and found else 0
