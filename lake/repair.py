"""Finding and repairing what makes a lake unreadable or untrue, with a record of what was done.

Every kind of damage is one `Damage`, which says what was found and what a repair does about it. Nothing here happens in
a lake that only worldlake writes, on a disk that keeps what it acknowledged; people delete files, and disks forget.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from lake.errors import BrokenLog, Fenced, Refused
from lake.forget import Changed, Forgotten, complete, delete_files, find_left, sweep_until_clean
from lake.log import Log, Named, Stored, broken_checkpoints, is_whole, read_commit, stored
from lake.maintenance import KEEP_HOURS, delete_orphans, old_files
from lake.runs import Run, new_run_id
from lake.schemas import DECISIONS, IMAGES, TABLES
from lake.storage import join
from lake.store_errors import is_passing, read_undamaged
from lake.tables import DataFile, Lake, now
from lake.writer import Writer, raise_fences

_EXAMPLES = 3
_AT_ONCE = 16
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
        """Return the damage without what repairs it."""
        return {name: value for name, value in vars(self).items() if name != "repair"}


def check(lake: Lake) -> list[Damage]:
    """Look for all kinds of damage; changes nothing.

    Where a table cannot be opened, what depends on it is not looked at until it can.

    Raises:
        Refused: there is no lake at the uri.
        OSError: the store is away.
    """
    _refuse_elsewhere(lake)
    for look in (_logs, _files):
        if found := [damage for name in TABLES for damage in look(lake, name)]:
            return found
    if found := _unbalanced(lake):
        return found
    try:
        # A `forget` that was killed half-way leaves sums that do not balance.
        return list(_forgotten(lake)) or [*_repeated(lake), *_sums(lake), *_orphans(lake)]
    except (pa.ArrowInvalid, OSError, duckdb.Error) as error:
        if is_passing(error) or not (found := [damage for name in TABLES for damage in _unreadable(lake, name)]):
            raise
        return found


def repair(lake: Lake, *, take_over: bool = False) -> list[Damage]:
    """Repair what `check` finds, until it finds nothing; returns all that was found, oldest first.

    Raises:
        Refused: there is no lake at the uri, a run is alive (`take_over` ends it), or something is lost for good.
    """
    _refuse_elsewhere(lake)
    done: list[Damage] = []
    # Before the record of this run, which needs the tables. What cannot be opened has no writer to spare.
    while found := [damage for name in TABLES for damage in _logs(lake, name)]:
        # Missing tables last: creating them opens all the others.
        done += _repaired(lake, sorted(found, key=lambda damage: damage.kind == _MISSING))
    if found := _unbalanced(lake):
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
        complete(lake)
        run.counts |= Counter({f"{damage.kind} ({damage.table})": damage.count for damage in done})
        run.config |= {"repaired": [damage.row() for damage in done]}
    return done


# More than all kinds in all tables, several times over.
_MOST = 200


def _refuse_elsewhere(lake: Lake) -> None:
    if not any(stored(lake, name) for name in TABLES):
        raise Refused(f"no lake at {lake.uri}: create it with `worldlake ingest SRC --lake {lake.uri}`")


def _repaired(lake: Lake, found: list[Damage]) -> list[Damage]:
    for damage in found:
        try:
            damage.repair()
        except Fenced:
            # delta-rs has written rows into a file before its commit was refused, and they may be forgotten by now.
            complete(lake)
            raise
        except Changed:
            # Another process was there first; what is still damaged is found again.
            continue
    return found


def _logs(lake: Lake, name: str) -> Iterator[Damage]:
    """Tables that are not there, and newest commits and checkpoints that were not written whole."""
    files = stored(lake, name)
    try:
        versions = Log(lake, name).commits
    except BrokenLog as error:
        broken = _broken_commits(lake, name, files)
        newest = max(path for path in files if path.startswith("_delta_log/") and path.endswith(".json"))
        if broken == [newest]:
            remedy = f"put an empty commit in its place; {_LOST[name]}"
            yield Damage("half-written commits", name, 1, broken, remedy, partial(_empty_commit, lake, name, newest))
        else:
            broken = broken or [str(error)]
            yield _lost_log("half-written commits", lake, name, broken)
        return
    if not versions and files:
        yield _lost_log("lost logs", lake, name, sorted(files))
    elif not versions:
        remedy = f"create it; {_LOST[name]}"
        yield Damage(_MISSING, name, 1, [lake.table_uri(name)], remedy, partial(lake.create_table, name))
    elif broken := broken_checkpoints(lake, name, files):
        remedy = "delete them; the commits before them are all there"
        delete = partial(delete_files, lake, {name: broken})
        yield Damage("broken checkpoints", name, len(broken), broken[:_EXAMPLES], remedy, delete)


_FROM_BACKUP = "what it held is lost but for a backup"
_BY_A_RUN = "`worldlake label` decides again what it held; labels of a service or of people are lost but for a backup"
# By table, what becomes of what was in a commit or a table that is gone.
_LOST = {
    "videos": "run `worldlake ingest` again for what it held",
    "triples": _BY_A_RUN,
    "rejections": _BY_A_RUN,
    "progress": _BY_A_RUN,
    "failures": "what failed is tried again, and what was forgotten is unknown: forget it again",
    "tokens": "the next training makes them again",
    "reviews": _FROM_BACKUP,
    "runs": _FROM_BACKUP,
}


def _lost_log(kind: str, lake: Lake, name: str, paths: list[str]) -> Damage:
    """Damage that cannot be repaired."""

    def give_up() -> None:
        raise Refused(
            f"the log of {name} in {lake.uri} cannot be read ({paths[0]}): restore {name}/_delta_log from a backup"
        )

    remedy = f"none here: restore {name}/_delta_log from a backup of the lake"
    return Damage(kind, name, len(paths), paths[:_EXAMPLES], remedy, give_up)


def _broken_commits(lake: Lake, name: str, files: dict[str, Stored]) -> list[str]:
    broken = []
    for path in sorted(files):
        if path.startswith("_delta_log/") and path.endswith(".json"):
            try:
                read_commit(lake, name, path)
            except BrokenLog:
                broken.append(path)
    return broken


def _empty_commit(lake: Lake, name: str, path: str) -> None:
    """Put a commit that does nothing in the place of a broken one.

    Not deleted: another process may have repaired it meanwhile, and others may have committed since.
    """
    uri = join(lake.table_uri(name), path)
    broken = lake.storage.get(uri) or b""
    if is_whole(broken):
        raise Changed
    action = {"commitInfo": {"timestamp": int(now().timestamp() * 1000), "operation": "REPAIR"}}
    if not lake.storage.replace(uri, broken, json.dumps(action).encode()):
        if lake.storage.get(uri) == broken:
            raise Refused(f"another repair of {lake.uri} is running: wait for it, or end its process")
        raise Changed
    lake.flush(name)


def _files(lake: Lake, name: str) -> Iterator[Damage]:
    """Yield files that the newest version names and that are gone or of another size."""
    log = Log(lake, name)
    if lost := _lost(log):
        yield _missing("missing files", lake, log, lost)


def _unreadable(lake: Lake, name: str) -> Iterator[Damage]:
    """Yield files that the newest version names and whose ids cannot be read."""
    log = Log(lake, name)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        whole = pool.map(partial(_is_readable, lake, name), log.newest)
        lost = [one for one, is_whole in zip(log.newest.values(), whole, strict=True) if not is_whole]
    if lost:
        yield _missing("unreadable files", lake, log, lost)


def _unbalanced(lake: Lake) -> list[Damage]:
    """Damage of the tables by which the record of a run goes."""
    return [damage for name in ("runs", "failures") for damage in (*_files(lake, name), *_unreadable(lake, name))]


def _is_readable(lake: Lake, name: str, path: str) -> bool:
    columns = [column for column in TABLES[name].names if column not in IMAGES]
    filesystem, root = lake.storage.filesystem(lake.table_uri(name))
    return read_undamaged(lambda: pq.ParquetFile(f"{root}/{path}", filesystem=filesystem).read(columns)) is not None


def _missing(kind: str, lake: Lake, log: Log, lost: list[Named]) -> Damage:
    replaced = _replaced(log, lost)
    remedy = f"take it out of the table; {_LOST[log.name]}"
    if replaced:
        remedy = f"take it out of the table; bring back {len(replaced)} files that it was made from"
    drop = partial(_drop, lake, log.name, [one.path for one in lost])
    return Damage(kind, log.name, len(lost), [one.path for one in lost[:_EXAMPLES]], remedy, drop)


def _lost(log: Log) -> list[Named]:
    """Return files of the newest version that are not stored, or not whole."""
    return [one for path, one in log.newest.items() if path not in log.files or log.files[path].bytes != one.bytes]


def _replaced(log: Log, lost: list[Named]) -> dict[str, Named]:
    return {path: span for one in lost for path, span in log.replaced_by(one).items() if path in log.files}


def _drop(lake: Lake, name: str, paths: list[str]) -> None:
    """Take out what is lost and bring back what it was made from, in one commit.

    As copies: a `maintain` that was paused may be about to delete the files themselves.
    """
    writer, log = Writer(lake), Log(lake, name)
    lost = [log.newest[path] for path in paths if path in log.newest]
    at = int(now().timestamp() * 1000)
    gone: list[AddAction | RemoveAction] = [
        RemoveAction(path=one.path, data_change=True, deletion_timestamp=at, size=one.bytes) for one in lost
    ]
    back = [_copied(lake, name, path) for path in _replaced(log, lost)]

    def check(table: DeltaTable) -> None:
        if table.version() != max(log.commits):
            raise Changed

    writer.commit(name, back, check=check, also_actions=gone)


def _copied(lake: Lake, name: str, path: str) -> DataFile:
    content = lake.storage.get(join(lake.table_uri(name), path))
    if content is None:
        raise Changed
    rows = pq.read_table(pa.BufferReader(content), schema=TABLES[name])
    return lake.write_file(rows, name, "repair")


def _forgotten(lake: Lake) -> Iterator[Damage]:
    """Yield what has a tombstone and is there all the same."""
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
    # Its fences first: what is read from here on is what may be written.
    writer = Writer(lake)
    rows = lake.read(name, TABLES[name].names, pc.field(column).isin(ids)).to_pylist()
    first: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row[time]):
        first.setdefault(row[column], row)
    writer.write(name, list(first.values()), replacing=(column, ids))


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
    writer, videos = Writer(lake), sorted({video for video, _ in found})
    rows = lake.read("progress", TABLES["progress"].names, pc.field("video_id").isin(videos)).to_pylist()
    kept = [row for row in rows if (row["video_id"], row["labeler_id"]) not in found]
    writer.write("progress", kept, replacing=("video_id", videos))


def _orphans(lake: Lake) -> Iterator[Damage]:
    """Yield files that no commit ever named, of runs that were killed."""
    before = now() - timedelta(hours=KEEP_HOURS)
    delete = partial(delete_orphans, lake, before)
    for name in TABLES:
        if orphans := old_files(lake, name, before, {})[1]:
            yield Damage("files that no commit names", name, len(orphans), orphans[:_EXAMPLES], "delete them", delete)
