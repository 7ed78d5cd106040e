"""Compact, cluster and vacuum the tables of a lake, and forget videos.

Rewriting never touches what the committer relies on: its application transactions stay in the log, and its files are
either committed or younger than what a vacuum takes.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import ColumnProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from lake import forgotten
from lake.commits import Committer
from lake.errors import Refused
from lake.runs import Run, RunState, live_runs, new_run_id, states
from lake.schemas import TABLES
from lake.storage import normalise
from lake.tables import STATISTICS_BYTES, Lake, to_table

#: Readers and writers that are at work need what they began with; a committer takes no file older than half of this.
KEEP_HOURS = 24
# Rows with two images of some 10 kB each: row groups of about 50 MB, so that a reader of pixels stays small.
_IMAGE_ROWS = 2_000
_IDS_PER_DELETE = 10_000
# Pairs of one video together, videos of one data set together: what training and SQL read at once.
_CLUSTER_BY = ("dataset", "video_id")
_CLUSTERED = ("triples", "rejections")
# `reviews` first, as they are found by the triples; `videos` last: while it names them, a command that was killed
# half-way finds them again.
_FORGET_ORDER = ("reviews", "tokens", "triples", "rejections", "progress", "failures", "videos")


@dataclass
class Maintained:
    """What became of one table: data files before and after, files deleted from the store; None: not looked for."""

    files_before: int
    files_after: int
    deleted: int | None


@dataclass
class Forgotten:
    """Rows deleted by table, files deleted from the store, and the training runs that had seen the videos."""

    videos: int
    rows: dict[str, int] = field(default_factory=dict)
    deleted: int = 0
    trained: list[RunState] = field(default_factory=list)


def maintain(lake: Lake, *, cluster: bool = False, keep_hours: int = KEEP_HOURS) -> dict[str, Maintained]:
    """Compact every table and delete the files that nothing needs, also those that no commit ever named.

    Versions that a training read are kept whole. ``cluster`` also sorts `triples` and `rejections` by data set and
    video, which rewrites them entirely. While a run is at work nothing is deleted: it may be a slow one, with files
    that it has yet to commit. One that starts meanwhile has young files only, which are spared.

    Raises:
        Refused: another `maintain` or a `forget` is at work, or ``keep_hours`` is under 24.
    """
    if keep_hours < KEEP_HOURS:
        raise Refused(f"files are kept for at least {KEEP_HOURS} hours: readers may be at work on them")
    config = {"cluster": cluster, "keep_hours": keep_hours}
    with Run(lake, new_run_id(), "maintain", config) as run:
        is_quiet = {other.run_id for other in live_runs(lake)} == {run.run_id}
        pins = _pinned_versions(lake)
        done = {name: _compact(lake, name, cluster) for name in TABLES}
        if is_quiet:
            for name, table in done.items():
                table.deleted = _vacuum(lake, name, keep_hours, pins[name])
        return done


def _compact(lake: Lake, name: str, cluster: bool) -> Maintained:
    table = lake.table(name)
    before = len(table.file_uris())
    # Rows that are replaced meanwhile, as an ingest does with the state of a file that is back, leave it for next time.
    with suppress(CommitFailedError):
        if cluster and name in _CLUSTERED:
            table.optimize.z_order(list(_CLUSTER_BY), writer_properties=_writer(name))
        else:
            table.optimize.compact(writer_properties=_writer(name))
    table.update_incremental()
    table.create_checkpoint()
    return Maintained(before, len(table.file_uris()), None)


def _vacuum(lake: Lake, name: str, keep_hours: int, pins: list[int]) -> int:
    table = lake.table(name)
    return len(table.vacuum(keep_hours, dry_run=False, full=True, keep_versions=_existing(table, pins)))


def forget(lake: Lake, what: str) -> Forgotten:
    """Delete a video (by id or uri, all its states) or a data set from every table, and its bytes from the store.

    Older versions that held it cannot be read any more, also those that a training had pinned; the runs of these
    trainings are returned. File statistics in the Delta log and the record of this run may still name ids and uris. The
    source files are not touched; a hash of each uri stays in `failures`, so that an ingest of the same source leaves
    them alone, see ``lake.forgotten``.

    Raises:
        Refused: nothing is called so, or a run is at work.
    """
    with Run(lake, new_run_id(), "forget", {"what": what}) as run:
        _fence_labelers(lake, run.run_id)
        return _forget(lake, what)


def _fence_labelers(lake: Lake, run_id: str) -> None:
    """End every labelling run that was paused and looks dead, and stop services for a while: their files are to go."""
    for run in {(run.labeler_id, run.kind == "serve"): run for run in states(lake) if run.labeler_id}.values():
        assert run.labeler_id is not None
        Committer(lake, run.labeler_id, run_id, source="live" if run.kind == "serve" else "label").fence()


def _forget(lake: Lake, what: str) -> Forgotten:
    videos = _resolve(lake, what)
    trained = {run.run_id: run for run in _trainings(lake) if _saw(lake, run, videos)}
    pins = _pinned_versions(lake, without=trained)
    triples = [
        triple
        for name in ("triples", "rejections")
        for triple in lake.read(name, ["triple_id"], pc.field("video_id").isin(videos))["triple_id"].to_pylist()
    ]
    # Before anything is gone: who is killed from here on has not forgotten what to leave alone.
    forgotten.record(lake, _uris(lake, videos))
    result = Forgotten(videos=len(videos), trained=list(trained.values()))
    for name in _FORGET_ORDER:
        column, ids = ("triple_id", triples) if name == "reviews" else ("video_id", videos)
        result.rows[name] = _delete(lake, name, column, ids)
        # No run is at work, so every file that the newest version does not name is left over and may hold the video.
        table = lake.table(name)
        deleted = table.vacuum(
            0,
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            keep_versions=_existing(table, pins[name]),
        )
        result.deleted += len(deleted)
    return result


def _resolve(lake: Lake, what: str) -> list[str]:
    """Ids of the videos that an id, a uri or a data set name means."""
    uri = what if what.startswith("s3://") else normalise(what)
    named = (pc.field("video_id") == what) | pc.field("uri").isin([what, uri])
    belongs = named | (pc.field("dataset") == what)
    found = {
        *lake.read("videos", ["video_id"], belongs)["video_id"].to_pylist(),
        # Pairs of images are labelled without a video.
        *lake.read("triples", ["video_id"], belongs)["video_id"].to_pylist(),
        # A video that could never be read is only here.
        *lake.read("failures", ["video_id"], named)["video_id"].to_pylist(),
    } - {None}
    if not found:
        raise Refused(f"no video and no data set of the lake is called {what!r}: give a video_id, a uri or a dataset")
    return sorted(found)


def _uris(lake: Lake, videos: list[str]) -> set[str]:
    mine = pc.field("video_id").isin(videos) & pc.field("uri").is_valid()
    return {
        uri
        for name in ("videos", "triples", "rejections", "failures")
        for uri in lake.read(name, ["uri"], mine)["uri"].to_pylist()
    }


def _trainings(lake: Lake) -> list[RunState]:
    return [run for run in states(lake) if run.kind.startswith("train")]


def _pinned_versions(lake: Lake, without: Iterable[str] = ()) -> dict[str, list[int]]:
    """By table, the versions that trainings read."""
    pins: dict[str, set[int]] = {name: set() for name in TABLES}
    for run in _trainings(lake):
        if run.run_id not in set(without):
            for name, version in run.tables_read.items():
                pins[name].add(int(version))
    return {name: sorted(versions) for name, versions in pins.items()}


def _existing(table: DeltaTable, versions: list[int]) -> list[int]:
    """The versions whose log is still there; the others cannot be read whatever is kept."""
    if not versions:
        return []
    logged = {entry["version"] for entry in table.history()}
    return [version for version in versions if version in logged]


def _saw(lake: Lake, run: RunState, videos: list[str]) -> bool:
    """Whether a training read triples of the videos; a version that is gone counts as if it had."""
    version = run.tables_read.get("triples")
    if version is None:
        return False
    table = lake.table("triples")
    try:
        table.load_as_version(int(version))
    except (DeltaError, OSError):
        return True
    return bool(_scan(lake, "triples", table, "video_id", videos).count_rows())


def _delete(lake: Lake, name: str, column: str, ids: list[str]) -> int:
    deleted = 0
    for chunk in _chunks(ids):
        table = lake.table(name)
        rows = _scan(lake, name, table, column, chunk).count_rows()
        if not rows:
            continue
        # Ids are hexadecimal digits and dashes: nothing in them to escape. `DeltaTable.delete` would leave files whose
        # strings are views, and Arrow cannot filter those; what is overwritten with nothing keeps its types.
        write_deltalake(
            table,
            to_table(name, []),
            mode="overwrite",
            predicate=f"{column} IN ({', '.join(repr(one) for one in chunk)})",
            writer_properties=_writer(name),
        )
        deleted += rows
    return deleted


def _scan(lake: Lake, name: str, table: DeltaTable, column: str, ids: list[str]) -> pads.Scanner:
    return lake.dataset(name, table).scanner(columns=[column], filter=pc.field(column).isin(ids))


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _IDS_PER_DELETE):
        yield ids[start : start + _IDS_PER_DELETE]


def _writer(name: str) -> WriterProperties:
    """As the tables are written at first: no dictionaries of images."""
    images = [column for column in ("obs", "next_obs") if column in TABLES[name].names]
    plain = ColumnProperties(dictionary_enabled=False)
    return WriterProperties(
        compression="ZSTD",
        max_row_group_size=_IMAGE_ROWS if images else None,
        statistics_truncate_length=STATISTICS_BYTES,
        column_properties=dict.fromkeys(images, plain),
    )
