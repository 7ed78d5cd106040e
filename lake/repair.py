"""Finding and repairing what makes a lake unreadable or untrue, with a record of what was done.

Every kind of damage is one `Damage`, which says what was found and what a repair does about it. Nothing here happens in
a lake that only worldlake writes, on a disk that keeps what it acknowledged; people delete files, and disks forget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import duckdb
import pyarrow.compute as pc
from deltalake.transaction import AddAction, RemoveAction

from lake.errors import Fenced, Refused
from lake.forget import Forgotten, clean_logs, delete_files, find_left, sweep_files, sweep_until_clean
from lake.log import BrokenLog, Log, Named, Stored, broken_checkpoints, read_commit, stored
from lake.maintenance import KEEP_HOURS, delete_orphans, old_files
from lake.runs import Run, new_run_id
from lake.schemas import DECISIONS, TABLES
from lake.tables import DataFile, Lake, now
from lake.writer import Writer, raise_fences

_EXAMPLES = 3
_MISSING = "missing table"


@dataclass(frozen=True)
class Damage:
    """Something wrong with a lake: what kind, in which table, how often, examples, and what a repair does about it."""

    kind: str
    table: str
    count: int
    examples: list[str]
    remedy: str
    repair: Callable[[], object] = field(repr=False, compare=False)

    def text(self) -> str:
        """One line for people."""
        shown = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
        return f"{self.kind} in {self.table}: {self.count:,} ({shown}); repair: {self.remedy}"

    def row(self) -> dict[str, Any]:
        """The damage without what repairs it."""
        return {name: value for name, value in vars(self).items() if name != "repair"}


def check(lake: Lake) -> list[Damage]:
    """Look for all kinds of damage; changes nothing.

    Where a table cannot be opened, what depends on it is not looked at until it can.

    Raises:
        Refused: there is no lake at the uri.
    """
    if not any(stored(lake, name) for name in TABLES):
        raise Refused(f"no lake at {lake.uri}: create it with `worldlake ingest SRC --lake {lake.uri}`")
    for look in (_logs, _files):
        if found := [damage for name in TABLES for damage in look(lake, name)]:
            return found
    # A `forget` that was killed half-way leaves sums that do not balance.
    return list(_forgotten(lake)) or [*_repeated(lake), *_sums(lake), *_orphans(lake)]


def repair(lake: Lake, *, take_over: bool = False) -> list[Damage]:
    """Repair what `check` finds, until it finds nothing; returns all that was found, oldest first.

    Raises:
        Refused: there is no lake at the uri, or a run is alive (`take_over` ends it).
    """
    done: list[Damage] = []
    # Before the record of this run, which needs the tables. What cannot be opened has no writer to spare.
    while found := [damage for name in TABLES for damage in _logs(lake, name)]:
        # Missing tables last: creating them opens all the others.
        done += _repaired(lake, sorted(found, key=lambda damage: damage.kind == _MISSING))
    if found := list(_files(lake, "runs")):
        raise_fences(lake)
        done += _repaired(lake, found)
    with Run(lake, new_run_id(), "repair", {}, tables_read={"videos": 0}, take_over=take_over) as run:
        if found := check(lake):
            raise_fences(lake)
        while found:
            done += _repaired(lake, found)
            if len(done) > _MOST:
                raise Refused(f"the lake is damaged again as soon as it is repaired: {found[0].text()}")
            found = check(lake)
        clean_logs(lake)
        run.counts |= Counter({f"{damage.kind} ({damage.table})": damage.count for damage in done})
        run.config |= {"repaired": [damage.row() for damage in done]}
    return done


# More than all kinds in all tables, several times over.
_MOST = 200


def _repaired(lake: Lake, found: list[Damage]) -> list[Damage]:
    for damage in found:
        try:
            damage.repair()
        except Fenced:
            # delta-rs has written rows into a file before its commit was refused, and they may be forgotten by now.
            sweep_files(lake)
            raise
    return found


def _logs(lake: Lake, name: str) -> Iterator[Damage]:
    """Tables that are not there, and newest commits and checkpoints that were not written whole."""
    files = stored(lake, name)
    try:
        versions = Log(lake, name, files).commits
    except BrokenLog as error:
        broken = _broken_commits(lake, name, files)
        newest = max(path for path in files if path.startswith("_delta_log/") and path.endswith(".json"))
        if broken == [newest]:
            remedy = "delete it; it was never acknowledged"
            fix = partial(delete_files, lake, {name: broken})
        else:
            remedy = "none here: restore these files from a backup of the lake"
            broken = broken or [str(error)]
            fix = partial(_give_up, lake, broken)
        yield Damage("half-written commits", name, len(broken), broken[:_EXAMPLES], remedy, fix)
        return
    if not versions:
        yield Damage(_MISSING, name, 1, [lake.table_uri(name)], "create it", lake.create)
    elif broken := broken_checkpoints(lake, name, files):
        remedy = "delete them; the commits before them are all there"
        delete = partial(delete_files, lake, {name: broken})
        yield Damage("broken checkpoints", name, len(broken), broken[:_EXAMPLES], remedy, delete)


def _broken_commits(lake: Lake, name: str, files: dict[str, Stored]) -> list[str]:
    broken = []
    for path in sorted(files):
        if path.startswith("_delta_log/") and path.endswith(".json"):
            try:
                read_commit(lake, name, path)
            except BrokenLog:
                broken.append(path)
    return broken


def _give_up(lake: Lake, paths: list[str]) -> None:
    raise Refused(f"{lake.uri} has commits in the middle of a log that cannot be read ({paths[0]}): restore a backup")


def _files(lake: Lake, name: str) -> Iterator[Damage]:
    """Files that the newest version names and that are gone or of another size."""
    files = stored(lake, name)
    log = Log(lake, name, files)
    lost = _lost(log, files)
    if lost:
        replaced = {path: span for one in lost for path, span in log.replaced_by(one).items() if path in files}
        remedy = "take it out of the table"
        if replaced:
            remedy += f"; bring back {len(replaced)} files that it was made from"
        examples = [one.path for one in lost[:_EXAMPLES]]
        yield Damage("missing files", name, len(lost), examples, remedy, partial(_drop, lake, name))


def _drop(lake: Lake, name: str) -> None:
    """Take out what is lost and bring back what it was made from, in one commit."""
    files = stored(lake, name)
    log = Log(lake, name, files)
    lost = _lost(log, files)
    replaced = {path: span for one in lost for path, span in log.replaced_by(one).items() if path in files}
    at = int(now().timestamp() * 1000)
    gone: list[AddAction | RemoveAction] = [
        RemoveAction(path=one.path, data_change=True, deletion_timestamp=at, size=one.bytes) for one in lost
    ]
    back = [DataFile(name, path, span.bytes, 0, now(), "{}", ()) for path, span in replaced.items()]
    Writer(lake).commit(name, back, also_actions=gone)


def _lost(log: Log, files: dict[str, Stored]) -> list[Named]:
    return [one for path, one in log.newest.items() if path not in files or files[path].bytes != one.bytes]


def _forgotten(lake: Lake) -> Iterator[Damage]:
    """What has a tombstone and is there all the same."""
    left = find_left(lake)
    sweep = partial(sweep_until_clean, lake, [], Forgotten(0))
    for name in TABLES:
        rows = [value for values in left.rows.get(name, {}).values() for value in values]
        if found := [*rows, *left.files.get(name, ())]:
            remedy = "delete them, as `worldlake forget` would have"
            yield Damage("forgotten rows or files", name, len(found), found[:_EXAMPLES], remedy, sweep)


def _repeated(lake: Lake) -> Iterator[Damage]:
    """Rows that share an id which each row should have alone."""
    for name, column, time in (
        ("videos", "video_id", "added_at"),
        *((name, "triple_id", "labeled_at") for name in DECISIONS),
    ):
        if twice := _twice(lake.read(name, [column])[column]):
            keep = partial(_keep_first, lake, name, column, time, twice)
            yield Damage("rows of one id", name, len(twice), twice[:_EXAMPLES], "keep the oldest row of each", keep)
    ids = [set(lake.read(name, ["triple_id"])["triple_id"].to_pylist()) for name in DECISIONS]
    if both := sorted(set.intersection(*ids)):
        remedy = "keep the rejection: what is in doubt is not accepted"
        reject = partial(_delete_triples, lake, both)
        yield Damage("pairs accepted and rejected", "triples", len(both), both[:_EXAMPLES], remedy, reject)


def _delete_triples(lake: Lake, ids: list[str]) -> None:
    Writer(lake).write("triples", [], replacing=("triple_id", ids))


def _twice(ids: Any) -> list[str]:
    counts = pc.value_counts(ids.combine_chunks())
    return sorted(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())


def _keep_first(lake: Lake, name: str, column: str, time: str, ids: list[str]) -> None:
    rows = lake.dataset(name).to_table(filter=pc.field(column).isin(ids)).to_pylist()
    first: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row[time]):
        first.setdefault(row[column], row)
    Writer(lake).write(name, list(first.values()), replacing=(column, ids))


_UNBALANCED = """
WITH done AS (
    SELECT * FROM progress QUALIFY row_number() OVER (PARTITION BY video_id, labeler_id ORDER BY finished_at DESC) = 1
), decided AS (
    SELECT video_id, labeler_id, triple_id FROM triples UNION SELECT video_id, labeler_id, triple_id FROM rejections
), failed AS (
    SELECT DISTINCT video_id, labeler_id, triple_id FROM failures WHERE scope = 'pair' AND triple_id IS NOT NULL
), known AS (
    SELECT video_id, labeler_id, count(DISTINCT triple_id) AS pairs
    FROM (SELECT * FROM decided UNION SELECT * FROM failed) GROUP BY ALL
)
SELECT done.video_id, done.labeler_id FROM done LEFT JOIN known USING (video_id, labeler_id)
WHERE NOT starts_with(done.labeler_id, 'human:') AND done.sampled <> coalesce(known.pairs, 0) ORDER BY ALL
"""


def _sums(lake: Lake) -> Iterator[Damage]:
    """Finished videos whose pairs are not all decided or failed, as `worldlake status` counts them."""
    with duckdb.connect() as connection:
        for name in ("progress", "failures", *DECISIONS):
            connection.register(name, lake.dataset(name))
        found = connection.execute(_UNBALANCED).fetchall()
    if found:
        remedy = "take the videos for unfinished: the next `worldlake label` decides what is missing"
        videos = sorted({video for video, _ in found})
        reopen = partial(_reopen, lake, set(found))
        yield Damage("sums that do not balance", "progress", len(found), videos[:_EXAMPLES], remedy, reopen)


def _reopen(lake: Lake, found: set[tuple[str, str]]) -> None:
    videos = sorted({video for video, _ in found})
    rows = lake.dataset("progress").to_table(filter=pc.field("video_id").isin(videos)).to_pylist()
    kept = [row for row in rows if (row["video_id"], row["labeler_id"]) not in found]
    Writer(lake).write("progress", kept, replacing=("video_id", videos))


def _orphans(lake: Lake) -> Iterator[Damage]:
    """Files that no commit ever named, of runs that were killed."""
    before = now() - timedelta(hours=KEEP_HOURS)
    delete = partial(delete_orphans, lake, before)
    for name in TABLES:
        if orphans := old_files(lake, name, before, {})[1]:
            yield Damage("files that no commit names", name, len(orphans), orphans[:_EXAMPLES], "delete them", delete)
