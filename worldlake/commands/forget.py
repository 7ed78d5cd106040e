"""`worldlake forget`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lake.storage import StorageConfig
from lake.text import counted
from worldlake import console
from worldlake.options import ConfigFile, Json, LakeUri, Storage, TakeOver, open_lake


def forget(
    what: Annotated[str, Parameter(help="A video_id, the uri of a video, or a data set.")],
    *,
    lake: LakeUri,
    take_over: TakeOver = False,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Delete a video or a data set from every table and version, and its bytes from the store.

    The source files are not touched, and later ingests of them skip it: a hash of its uri is kept for that
    (`worldlake ingest SRC --forgotten` brings it back). Lists the models trained on it, and the trainings whose pinned
    versions it takes away. Refused while a run is alive.
    """
    from lake.forget import forget as run_forget

    gone = run_forget(open_lake(lake, storage), what, take_over=take_over)
    trained = [run.run_id for run in gone.trained]
    if json:
        counts = {"videos": gone.videos, "rows": dict(gone.rows), "files_deleted": gone.deleted}
        console.print_json({**counts, "trained": trained, "unpinned": gone.unpinned})
        return 0
    rows = ", ".join(f"{count:,} {name}" for name, count in gone.rows.items() if count)
    what_went = f"forgot {counted(gone.videos, 'video')}" if gone.videos else "forgotten before"
    console.out.print(f"{what_went}: {rows or 'no rows'}; {counted(gone.deleted, 'file')} deleted", markup=False)
    if trained:
        console.out.print(f"models trained on them: {', '.join(trained)}", markup=False)
    if gone.unpinned:
        console.out.print(f"trainings that can no longer be repeated: {', '.join(gone.unpinned)}", markup=False)
    return 0
