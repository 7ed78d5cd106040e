"""Compact and cluster the tables of a lake, and delete the files that nothing needs any more.

Rewriting never touches what the committer relies on: its application transactions stay in the log, and its files are
either committed or younger than what is deleted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from deltalake.exceptions import CommitFailedError, DeltaError

from lake.errors import Fenced, Refused
from lake.forget import complete, delete_files
from lake.log import Log, Stored, stored
from lake.runs import Run, find_alive, new_run_id, states
from lake.schemas import TABLES
from lake.tables import Lake, now
from lake.writer import fence_of, raise_fences, rewritten

#: Readers that are open need what they began with.
KEEP_HOURS = 24
# Pairs of one video together, videos of one data set together: what training and SQL read at once.
_CLUSTER_BY = ("dataset", "video_id")
_CLUSTERED = ("triples", "rejections")


@dataclass
class Maintained:
    """The result for one table: data files before and after, files deleted from the store (None: not searched)."""

    files_before: int
    files_after: int
    deleted: int | None


def maintain(lake: Lake, *, cluster: bool = False, keep_hours: int = KEEP_HOURS) -> dict[str, Maintained]:
    """Compact every table and delete the files that nothing needs, also those that no commit ever named.

    Versions that a training read are kept whole. ``cluster`` also sorts `triples` and `rejections` by data set and
    video, which rewrites them entirely. While a run is alive nothing is deleted: it may be a slow one, with files
    that it has yet to commit. One that was taken for dead is fenced before a file of its kind is deleted.

    Raises:
        Refused: another `maintain` or a `forget` is running, or ``keep_hours`` is under 24.
    """
    if keep_hours < KEEP_HOURS:
        raise Refused(f"files are kept for at least {KEEP_HOURS} hours: readers may have begun with them")
    config = {"cluster": cluster, "keep_hours": keep_hours}
    with Run(lake, new_run_id(), "maintain", config) as run:
        is_quiet = find_alive(lake, lambda other: other.run_id != run.run_id) is None
        try:
            done = {name: _compact(lake, name, cluster) for name in TABLES}
        except Fenced:
            # What it has written and not committed may hold what was forgotten.
            complete(lake)
            raise
        if is_quiet:
            for name, count in _delete_old(lake, timedelta(hours=keep_hours)).items():
                done[name].deleted = count
        # Also what a compaction here has written and not committed, if it was paused while a `forget` went through.
        complete(lake)
        return done


def _compact(lake: Lake, name: str, cluster: bool) -> Maintained:
    table = lake.table(name)
    before, fence = len(table.file_uris()), fence_of(table)
    try:
        if before > 1 or (before and cluster):
            _rewrite(lake, name, cluster and name in _CLUSTERED)
    except CommitFailedError:
        # Rows were replaced meanwhile, as an ingest does with the state of a file that is back: left for next time.
        pass
    except (DeltaError, OSError) as error:
        # A `forget` deletes the files that hold what it forgets.
        if fence_of(lake.table(name)) != fence:
            raise Fenced("videos of this lake were forgotten meanwhile: run the command again") from error
        raise
    lake.flush(name)
    table.update_incremental()
    lake.checkpoint(table, name)
    return Maintained(before, len(table.file_uris()), None)


def _rewrite(lake: Lake, name: str, cluster: bool) -> None:
    # delta-rs (1.6) lets two compactions of one version through, and then every row is there twice. A change of the
    # table's metadata ends those that were opened before it.
    mine = uuid4().hex
    lake.table(name).alter.set_table_properties({_REWRITER: mine}, raise_if_not_exists=False)
    table = lake.table(name)
    if table.metadata().configuration.get(_REWRITER) != mine:
        return
    if cluster:
        table.optimize.z_order(list(_CLUSTER_BY), writer_properties=rewritten(name))
    else:
        table.optimize.compact(writer_properties=rewritten(name))


_REWRITER = "worldlake.rewriter"


def _delete_old(lake: Lake, keep: timedelta) -> dict[str, int]:
    before = now() - keep
    deleted, pins = delete_orphans(lake, before), pinned_versions(lake)
    for name in TABLES:
        removed, _ = old_files(lake, name, before, pins)
        delete_files(lake, {name: removed})
        deleted[name] += len(removed)
    return deleted


def delete_orphans(lake: Lake, before: datetime) -> dict[str, int]:
    """Delete files that no commit named and that are older than a time; how many, by table.

    Their writer may be paused, about to commit them, and clocks may differ by more than a day. So only what was
    there before new fences and is unnamed behind them goes: nobody can commit it any more.
    """
    listed = {name: old_files(lake, name, before, {})[1] for name in TABLES}
    if any(listed.values()):
        raise_fences(lake)
        listed = {name: sorted({*paths} & {*old_files(lake, name, before, {})[1]}) for name, paths in listed.items()}
        delete_files(lake, listed)
    return {name: len(paths) for name, paths in listed.items()}


def old_files(lake: Lake, name: str, before: datetime, pins: Mapping[str, list[int]]) -> tuple[list[str], list[str]]:
    """Data files that no version needs which is kept: those removed, and those never named, before a time.

    ``pins`` are the versions that are kept beside the newest, by table.
    """
    files, log = stored(lake, name), Log(lake, name)
    removed, orphans = [], []
    for path, file in files.items():
        if not file.is_data or path in log.newest:
            continue
        spans = log.named.get(path)
        if spans is None:
            if _is_older(file, before):
                orphans.append(path)
        elif not any(span.is_in(pin) for span in spans for pin in pins.get(name, ())) and log.removed_at(path) < before:
            removed.append(path)
    return removed, orphans


def _is_older(file: Stored, before: datetime) -> bool:
    return file.modified_at is not None and file.modified_at < before


def pinned_versions(lake: Lake) -> dict[str, list[int]]:
    """By table, the versions that trainings read."""
    pins: dict[str, list[int]] = {}
    for run in states(lake):
        if run.kind.startswith("train"):
            for name, version in run.tables_read.items():
                pins.setdefault(name, []).append(int(version))
    return pins
