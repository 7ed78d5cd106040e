"""Forgetting videos: their rows and bytes leave every table, every version and every file of a lake.

The order makes it hold. First tombstones, so that every writer that opens the lake from now on skips the videos. Then
new fences, so that writers that were open before commit nothing more (see `lake.writer`). Then rows, files and
statistics are deleted, and looked for again until there are none. All of it goes by the tombstones in the lake, not by
what this process remembers: a `forget` that was killed is completed by the next one, or by `worldlake repair`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from lake import tombstones
from lake.errors import Fenced, Refused
from lake.log import Log, Named, Stored, stored
from lake.runs import Run, RunState, new_run_id, states
from lake.schemas import DECISIONS, TABLES
from lake.storage import join
from lake.store_errors import read_undamaged
from lake.tables import Lake
from lake.tombstones import Tombstones
from lake.writer import Writer, raise_fences

# `progress` first: while it calls a video finished all its pairs are there, also when this was killed half-way and the
# video brought back. `reviews` before the triples, by which they are found.
_ORDER = ("progress", "reviews", "tokens", "triples", "rejections", "failures", "videos", "runs")
_IDS_PER_DELETE = 10_000
_FILES_AT_ONCE = 16
# Answers that a service keeps for clients who ask again; they repeat labels of uploads.
_ANSWERS = "_serve/answers"


@dataclass
class Forgotten:
    """Rows deleted by table, files deleted from the store, the trainings that had seen the videos, and those of them
    whose pinned versions can no longer be read."""

    videos: int
    rows: Counter[str] = field(default_factory=Counter)
    deleted: int = 0
    trained: list[RunState] = field(default_factory=list)
    unpinned: list[str] = field(default_factory=list)


def forget(lake: Lake, what: str, *, take_over: bool = False) -> Forgotten:
    """Delete a video (by id or uri, all its states) or a data set from every table, and its bytes from the store.

    Every version that held it can no longer be read, also where a training had pinned it. The source files are not
    touched; hashes of uris and ids stay in `failures`, so that an ingest of the same source leaves them alone.

    `take_over` begins also beside a run that is alive, which ends with its next commit.

    Raises:
        Refused: nothing is called so, or a run is alive.
    """
    # The record of this run keeps no name of what it deletes.
    with Run(lake, new_run_id(), "forget", {"what": tombstones.key(what)}, take_over=take_over) as run:
        videos = _resolve(lake, what)
        trained = [one for one in states(lake) if one.kind.startswith("train") and _saw(lake, one, videos)]
        result = Forgotten(len({video for _, video in videos}), trained=trained)
        sweep_until_clean(lake, videos, result)
        run.counts |= {"videos": result.videos, "files_deleted": result.deleted, **result.rows}
        run.config |= {"trained": [one.run_id for one in trained], "unpinned": result.unpinned}
    return result


def sweep_until_clean(lake: Lake, videos: Iterable[tuple[str, str]], result: Forgotten) -> None:
    """Entomb videos, (uri, video_id) of each, and delete all that has a tombstone until nothing of it is left."""
    videos = list(videos)
    while True:
        tombstones.record(Writer(lake), videos)
        # What is there before the fences and what no commit has named behind them can never be committed any more.
        there = {name: stored(lake, name) for name in TABLES}
        raise_fences(lake)
        # Files that were never ended: nobody can read what they hold.
        delete_files(lake, {name: _unended(files) for name, files in there.items()})
        # Another `forget` or a `repair` that comes by deletes the same.
        with suppress(Fenced):
            find_left(lake).sweep(there, result)
        result.unpinned = sorted(set(result.unpinned))
        if not find_left(lake):
            return _clean_logs(lake)


def complete(lake: Lake) -> None:
    """Complete a `forget` that was killed, and delete what a fenced writer has left of what was forgotten."""
    if find_left(lake):
        sweep_until_clean(lake, [], Forgotten(0))
    elif tombstones.read(lake).uris:
        _clean_logs(lake)


def _clean_logs(lake: Lake) -> None:
    for name in TABLES:
        # Again: this process may have been paused before it wrote, while others deleted more.
        while Log(lake, name).clean():
            pass


@dataclass
class Left:
    """Remains in a lake of videos with a tombstone: rows, and files that no newest version names."""

    lake: Lake
    away: Tombstones
    rows: dict[str, dict[str, list[str]]]
    """By table, the values of a column by which rows are to be deleted."""
    files: dict[str, list[str]]
    triples: frozenset[str]

    def __bool__(self) -> bool:
        return any(self.rows.values()) or any(self.files.values())

    def sweep(self, there: Mapping[str, Collection[str]], result: Forgotten) -> None:
        """Delete it, table by table, but of files that no commit ever named only those that were `there` by table.

        Raises:
            Fenced: another one does.
        """
        writer, trainings = Writer(self.lake), [run for run in states(self.lake) if run.kind.startswith("train")]
        for name in _ORDER:
            for column, values in self.rows[name].items():
                for chunk in _chunks(values):
                    result.rows[name] += _delete_rows(self.lake, writer, name, column, chunk, self.away)
            # What the rows left behind in older versions, and files that were never committed.
            files = stored(self.lake, name)
            log = Log(self.lake, name)
            deletable = (files.keys() & (log.named.keys() | set(there[name]))) - log.newest.keys()
            doomed = _holding(self.lake, name, deletable, self.away, self.triples)
            result.unpinned += _unpinned(trainings, name, [log.named[path] for path in doomed if path in log.named])
            delete_files(self.lake, {name: doomed})
            result.deleted += len(doomed)
        _delete_answers(self.lake)


def find_left(lake: Lake) -> Left:
    """Look through every table and every file for what has a tombstone."""
    away = tombstones.read(lake)
    rows: dict[str, dict[str, list[str]]] = {name: {} for name in _ORDER}
    files: dict[str, list[str]] = {name: [] for name in _ORDER}
    if not away.uris:
        return Left(lake, away, rows, files, frozenset())
    triples = frozenset(id_ for name in DECISIONS for id_ in _doomed(lake.dataset(name), away)["triple_id"])
    for name in _ORDER:
        rows[name] = _rows(lake, name, away, triples)
        there, log = stored(lake, name), Log(lake, name)
        files[name] = _holding(lake, name, there.keys() - log.newest.keys(), away, triples)
    return Left(lake, away, rows, files, triples)


def _rows(lake: Lake, name: str, away: Tombstones, triples: frozenset[str]) -> dict[str, list[str]]:
    if name == "reviews":
        ids = lake.read(name, ["triple_id"])["triple_id"].to_pylist()
        found: dict[str, list[str]] = {"triple_id": sorted(triples.intersection(ids))}
    elif name == "runs":
        rows = lake.read(name, ["run_id", "config"]).to_pylist()
        named = {row["run_id"] for row in rows if tombstones.redacted(row["config"], away) != row["config"]}
        found = {"run_id": sorted(named)}
    else:
        doomed = _doomed(lake.dataset(name), away)
        # What has no id, as a listing that failed, goes by its uri.
        found = {column: sorted(doomed[column]) for column in ("video_id", "uri")}
    return {column: values for column, values in found.items() if values}


def _doomed(dataset: Any, away: Tombstones) -> dict[str, set[str]]:
    """Of rows with a tombstone: their triple and video ids, and the uris of those without a video id."""
    columns = [column for column in ("video_id", "uri", "triple_id") if column in dataset.schema.names]
    found: dict[str, set[str]] = {"video_id": set(), "uri": set(), "triple_id": set()}
    for batch in dataset.scanner(columns=columns).to_batches():
        for row in batch.filter(_covered(batch, away)).to_pylist():
            if row["video_id"] is None:
                found["uri"].add(row["uri"])
            else:
                found["video_id"].add(row["video_id"])
                found["triple_id"].add(row.get("triple_id") or "")
    return found


def _covered(rows: Any, away: Tombstones) -> pa.Array:
    """Return which rows have a tombstone, by their uri or their video id."""
    is_covered = pa.array([False] * len(rows))
    for column in ("uri", "video_id"):
        if column in rows.schema.names:
            values = pc.unique(rows[column])
            doomed = [one for one in values.to_pylist() if one is not None and away.covers(**{_AS[column]: one})]
            mine = pc.is_in(rows[column], value_set=pa.array(doomed, values.type))
            is_covered = pc.or_(is_covered, pc.fill_null(mine, False))
    return is_covered


_AS = {"uri": "uri", "video_id": "video"}


def _holding(lake: Lake, name: str, paths: Iterable[str], away: Tombstones, triples: frozenset[str]) -> list[str]:
    """Return which data files hold a row with a tombstone."""
    data = sorted(path for path in paths if path.endswith(".parquet") and not path.startswith("_delta_log/"))
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        held = pool.map(lambda path: _holds(lake, name, path, away, triples), data)
        return [path for path, holds in zip(data, held, strict=True) if holds]


def _holds(lake: Lake, name: str, path: str, away: Tombstones, triples: frozenset[str]) -> bool:
    columns = {"reviews": ["triple_id"], "runs": ["config"]}.get(name) or [
        column for column in ("video_id", "uri") if column in TABLES[name].names
    ]
    filesystem, root = lake.storage.filesystem(lake.table_uri(name))

    def read() -> pa.Table:
        try:
            return pq.ParquetFile(f"{root}/{path}", filesystem=filesystem).read(columns)
        except FileNotFoundError:
            return pa.table({})

    rows = read_undamaged(read)
    if rows is None:
        # Nobody can read it, and nobody knows what it holds.
        return True
    if not set(columns).intersection(rows.column_names):
        return False
    if name == "reviews":
        return not triples.isdisjoint(rows["triple_id"].to_pylist())
    if name == "runs":
        return any(tombstones.redacted(config, away) != config for config in rows["config"].to_pylist())
    return bool(pc.any(_covered(rows, away)).as_py())


def _unended(files: Mapping[str, Stored]) -> list[str]:
    """Of the files of a table: those whose writers have not ended them."""
    return [path for path, file in files.items() if file.is_data and file.is_unfinished]


def _delete_rows(lake: Lake, writer: Writer, name: str, column: str, values: list[str], away: Tombstones) -> int:
    """Delete the rows of some ids; those of `runs` stay, without the sources that they name. Returns how many."""
    while True:
        table = lake.table(name)
        mine = pc.field(column).isin(values)
        kept = []
        if name == "runs":
            rows = lake.dataset(name, table).to_table(TABLES[name].names, filter=mine).to_pylist()
            kept = [{**row, "config": tombstones.redacted(row["config"], away)} for row in rows]
        count = lake.dataset(name, table).scanner(columns=[column], filter=mine).count_rows()
        if not count:
            return 0

        def check(now: DeltaTable, then: int = table.version()) -> None:
            if now.version() != then:
                raise Changed

        try:
            writer.write(name, kept, check, replacing=(column, values))
            return 0 if kept else count
        except Changed:
            continue


class Changed(Exception):
    """A table has a newer version than the one whose rows were read."""


def _unpinned(trainings: list[RunState], name: str, deleted: list[list[Named]]) -> list[str]:
    """Trainings whose pinned version of a table named one of the files."""
    spans = [span for files in deleted for span in files]
    pins = [(run.run_id, int(run.tables_read[name])) for run in trainings if name in run.tables_read]
    return [run_id for run_id, version in pins if any(span.is_in(version) for span in spans)]


def delete_files(lake: Lake, paths: dict[str, list[str]]) -> None:
    """Delete files from the store, by table."""
    for name, doomed in paths.items():
        for path in doomed:
            lake.storage.delete(join(lake.table_uri(name), path))


def _delete_answers(lake: Lake) -> None:
    try:
        pages = list(lake.storage.pages(join(lake.uri, _ANSWERS)))
    except Refused:
        return
    for page in pages:
        for entry in page:
            lake.storage.delete(entry.uri)


def _resolve(lake: Lake, what: str) -> list[tuple[str, str]]:
    """(uri, video_id) of the videos that an id, a uri or a data set name means."""
    uri = tombstones.normal(what)
    named = (pc.field("video_id") == what) | pc.field("uri").isin([what, uri])
    # Pairs of images are labeled without a video, and a video that could never be read is in `failures` only.
    places = {"videos": named | (pc.field("dataset") == what), "triples": named | (pc.field("dataset") == what)}
    places |= {"rejections": places["triples"], "failures": named & pc.field("uri").is_valid()}
    found = {
        (row["uri"], row["video_id"] or "")
        for name, mine in places.items()
        for row in lake.read(name, ["uri", "video_id"], mine).to_pylist()
    }
    # All states of a file go with one of them.
    uris = pa.array(sorted({one for one, _ in found if one}), pa.string())
    for name in ("videos", "triples", "rejections", "failures"):
        rows = lake.read(name, ["uri", "video_id"], pc.field("uri").isin(uris)).to_pylist()
        found |= {(row["uri"], row["video_id"] or "") for row in rows}
    if found:
        return sorted((one, video) for one, video in found if one)
    if tombstones.read(lake).covers(uri, what):
        # Of a `forget` that was killed there may be something left.
        return []
    raise Refused(f"no video and no data set of the lake is called {what!r}: give a video_id, a uri or a dataset")


def _saw(lake: Lake, run: RunState, videos: list[tuple[str, str]]) -> bool:
    """Return whether a training read triples of the videos; a version that is gone counts as if it had."""
    version = run.tables_read.get("triples")
    if version is None:
        return False
    table = lake.table("triples")
    try:
        table.load_as_version(int(version))
    except (DeltaError, OSError):
        return True
    mine = pc.field("video_id").isin(sorted({video for _, video in videos}))
    return bool(lake.dataset("triples", table).scanner(columns=["video_id"], filter=mine).count_rows())


def _chunks(values: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _IDS_PER_DELETE):
        yield values[start : start + _IDS_PER_DELETE]
