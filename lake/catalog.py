"""The `videos` catalog: list sources page by page, read the headers of what is new, append.

A video is one state of a file: uri and etag. A file that changed is a new video; the row of its old state stays,
because triples made from it stay true. Only the newest state of a uri can still be read, so only that can be pending:
the row of the uri with the greatest `added_at`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import av
import pyarrow.compute as pc
from deltalake import DeltaTable, Transaction

from lake import layouts, tombstones
from lake.errors import Fenced, Refused, Unavailable, WorldlakeError
from lake.failures import Failure
from lake.forget import complete
from lake.ids import video_id
from lake.manifest import NOT_TEXT, is_text, read_manifest
from lake.mapping import Place, Unusable, check_split
from lake.runs import Run, new_run_id
from lake.s3 import PATIENCE_S
from lake.storage import Entry, is_s3, normalize
from lake.tables import Lake, now
from lake.video_headers import TIMEOUT_S, Header, ProbeError, Prober, prober
from lake.writer import Writer

EXTENSIONS = frozenset(
    "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv".split()  # noqa: SIM905 - reads better
)
# As everywhere in a lake: a transient error counts as final after three attempts.
MAX_ATTEMPTS = 3
_APP_ID = "ingest"


@dataclass
class IngestCounts:
    """listed = new + known + failed, in videos; `skipped` files are not videos.

    Of the known, `known_failed` could not be read before and `forgotten` were deleted by a `forget`: both are left
    alone. A file that is back in a state that it had before counts as new.
    """

    listed: int = 0
    new: int = 0
    known: int = 0
    failed: int = 0
    skipped: int = 0
    known_failed: int = 0
    forgotten: int = 0


@dataclass(frozen=True)
class _Again:
    """Which videos to try again: those that failed before, those that were deleted."""

    failed: bool
    forgotten: bool


class _Session:
    """A writer and the tombstones that it goes by; opened again when a `forget` has come by."""

    def __init__(self, lake: Lake) -> None:
        self.writer = Writer(lake)
        self.away = tombstones.read(lake)


@dataclass(frozen=True)
class Source:
    """Where videos come from and how their paths are read."""

    uri: str
    place: Callable[[str], Place]
    dataset: str | None
    split: str | None


def ingest(
    lake: Lake,
    sources: Sequence[str],
    *,
    dataset: str | None = None,
    layout: str = "auto",
    split: str | None = None,
    retry_failed: bool = False,
    bring_back: bool = False,
    on_progress: Callable[[IngestCounts], None] = lambda counts: None,
    places: Mapping[str, Mapping[str, Place]] | None = None,
) -> IngestCounts:
    """Catalog the videos under the sources that are not yet; the lake is created if need be.

    What cannot be read goes into `failures` with its reason (stage `probe`) and is left alone afterwards, a transient
    error after three attempts; ``retry_failed`` tries again. What a `forget` deleted is left alone until
    ``bring_back``. A listing that breaks off is a row with stage `list`.

    Args:
        dataset: data set of all videos; None: by layout, else the first folder of the path.
        layout: one of ``layouts.FORMATS``, or a YAML file with a ``mapping.Mapping``.
        split: split of all videos; None: by layout, else by a hash of the uri, so that a file that changes stays.
        places: what manifests say, by normalized source and path; None: they are read here where the layout has any.

    Raises:
        Refused: unknown layout or split, no source, a source that cannot be read or that holds no video; or a `forget`
            is running.
        Unavailable: the store does not answer.
    """
    mapping = layouts.find_mapping(layout)
    check_split(split)
    if not sources:
        raise Refused("no source given: name a folder or s3://bucket/folder that holds videos")
    for uri in sources:
        lake.storage.check(uri, must_exist=True)
    lake.create()
    # In S3 an outage may have to be waited out.
    patience_s = PATIENCE_S if any(map(is_s3, sources)) else 0.0
    config = {"sources": list(sources), "dataset": dataset, "format": layout, "split": split}
    with (
        Run(lake, new_run_id(), "ingest", config) as run,
        prober(lake.storage, TIMEOUT_S + patience_s) as probing,
    ):
        counts, again, session = IngestCounts(), _Again(retry_failed, bring_back), _Session(lake)
        run.counts = vars(counts)
        for uri in map(normalize, sources):
            if mapping and mapping.manifest and places is None:
                said: Mapping[str, Place] = read_manifest(lake.storage, uri, mapping).places
            else:
                said = (places or {}).get(uri, {})
            place = _reader(uri, layout, said)
            session = _ingest_source(session, Source(uri, place, dataset, split), probing, again, counts, on_progress)
    return counts


def _reader(source: str, layout: str, said: Mapping[str, Place]) -> Callable[[str], Place]:
    """Return what is known of a path from the source's root: what a manifest said, else what the path says itself."""
    mapping, name = layouts.find_mapping(layout), source.rsplit("/", 1)[-1]
    return lambda relative: said.get(relative) or layouts.place(relative, name, layout, mapping)


def _ingest_source(
    session: _Session,
    source: Source,
    probing: Prober,
    again: _Again,
    counts: IngestCounts,
    on_progress: Callable[[IngestCounts], None],
) -> _Session:
    """Catalog a source; returns the session that is open at its end."""
    lake, listed_before = session.writer.lake, counts.listed
    for page in _listed(lake, source):
        videos = [entry for entry in page if entry.uri.rsplit(".", 1)[-1].lower() in EXTENSIONS]
        counts.listed += len(videos)
        counts.skipped += len(page) - len(videos)
        while videos:
            try:
                found = _ingest_page(session, source, videos, probing, again)
            except Fenced:
                # What was read of these videos may be forgotten by now: once more, by what the lake says now. delta-rs
                # has written them into a file before its commit was refused.
                complete(lake)
                session = _Session(lake)
                continue
            for name, count in found.items():
                setattr(counts, name, getattr(counts, name) + count)
            counts.known += len(videos) - found["new"] - found["failed"]
            on_progress(counts)
            break
    if counts.listed == listed_before:
        raise Refused(f"no video under {source.uri!r}: looked for {', '.join(sorted(EXTENSIONS))}")
    return session


def _ingest_page(
    session: _Session, source: Source, videos: list[Entry], probing: Prober, again: _Again
) -> dict[str, int]:
    """Settle the videos of a page; returns what to add to `IngestCounts`, but for those that are known."""
    wanted = _without_forgotten(session, videos, again)
    pending, known_failed = _unsettled(session.writer.lake, wanted, again.failed)
    rows, failures = _probed(source, pending, probing)
    session.writer.append("failures", failures)
    new = _append_videos(session.writer, rows)
    return {
        "new": new,
        "failed": len(failures),
        "known_failed": known_failed,
        "forgotten": len(videos) - len(wanted),
    }


def _listed(lake: Lake, source: Source) -> Iterator[list[Entry]]:
    """Yield the pages of a source; a listing that breaks off leaves a row in `failures` before it raises."""
    try:
        yield from lake.storage.pages(source.uri)
    except (OSError, WorldlakeError) as error:
        reason = ProbeError(type(error).__name__, str(error), isinstance(error, Unavailable))
        Writer(lake).append("failures", [_failure(None, source.uri, "list", reason)])
        if isinstance(error, OSError):
            raise Refused(f"cannot list {source.uri!r}: {error}; fix it and run the command again") from None
        raise


class _Overtaken(Exception):
    """Another ingest has committed since the rows were compared with the table."""


def _append_videos(writer: Writer, rows: list[dict[str, Any]]) -> int:
    """Append what no other ingest has appended meanwhile; return how many rows that were.

    All ingests of a lake carry one application id, so a commit made from an outdated version conflicts.
    """
    while rows:
        table = writer.lake.table("videos")
        seen = _seen(writer.lake, table, [row["uri"] for row in rows])
        rows = [row for row in rows if seen.newest.get(row["uri"]) != row["video_id"]]
        if not rows:
            break
        for row in rows:
            # The newest state of a uri, also where the clock of this machine is behind that of an earlier ingest.
            if (before := seen.added.get(row["uri"])) and before >= row["added_at"]:
                row["added_at"] = before + timedelta(microseconds=1)
        turn = table.transaction_version(_APP_ID) or 0

        def check(table: DeltaTable, turn: int = turn) -> None:
            if (table.transaction_version(_APP_ID) or 0) != turn:
                raise _Overtaken

        try:
            # A state that is back replaces its own row: it is the newest of its uri again, and no row is twice.
            ids = [row["video_id"] for row in rows]
            replacing = ("video_id", ids if seen.ids.intersection(ids) else [])
            writer.write("videos", rows, check, [Transaction(_APP_ID, turn + 1)], replacing)
            return len(rows)
        except _Overtaken:
            continue
    return 0


class _Seen(NamedTuple):
    """The states of some files that a version of `videos` holds: all ids, and by uri the newest id and its time."""

    ids: set[str]
    newest: dict[str, str]
    added: dict[str, datetime]


def _seen(lake: Lake, table: DeltaTable, uris: list[str]) -> _Seen:
    # The uris of a page are neighbors, so this range lets whole files be left unread; the uris decide.
    first, last = (uri.replace("'", "''") for uri in (min(uris), max(uris)))
    rows = (
        lake.dataset("videos", table, prune=f"uri >= '{first}' AND uri <= '{last}'")
        .to_table(columns=["video_id", "uri", "added_at"], filter=pc.field("uri").isin(uris))
        .to_pylist()
    )
    # The order in which `labeling.pending` takes the newest.
    rows.sort(key=lambda row: row["video_id"], reverse=True)
    rows.sort(key=lambda row: row["added_at"])
    return _Seen(
        {row["video_id"] for row in rows},
        {row["uri"]: row["video_id"] for row in rows},
        {row["uri"]: row["added_at"] for row in rows},
    )


def _without_forgotten(session: _Session, page: list[Entry], again: _Again) -> list[Entry]:
    away = [entry for entry in page if session.away.covers(entry.uri)]
    if away and again.forgotten:
        tombstones.bring_back(session.writer, [entry.uri for entry in away])
        return page
    return [entry for entry in page if entry not in away] if away else page


def _unsettled(lake: Lake, page: list[Entry], retry_failed: bool) -> tuple[dict[str, Entry], int]:
    """Return the entries of a page, by video id, that are not cataloged and have not failed for good; how many have."""
    entries = {video_id(entry.uri, entry.etag): entry for entry in page}
    named = [entry.uri for entry in page if is_text(entry.uri)]
    settled = set(_seen(lake, lake.table("videos"), named).newest.values()) if named else set()
    failed: set[str] = set()
    if entries and not retry_failed:
        mine = (pc.field("stage") == "probe") & pc.field("video_id").isin(list(entries))
        attempts: dict[str, int] = {}
        for row in lake.read("failures", ["video_id", "transient"], mine).to_pylist():
            attempts[row["video_id"]] = attempts.get(row["video_id"], 0) + (1 if row["transient"] else MAX_ATTEMPTS)
        failed = {key for key, count in attempts.items() if count >= MAX_ATTEMPTS} - settled
    pending = {key: entry for key, entry in entries.items() if key not in settled | failed}
    return pending, len(failed)


def _probed(
    source: Source, pending: dict[str, Entry], probing: Prober
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for `videos` and rows for `failures`."""
    rows, failures = [], []
    nameless = ProbeError("ValueError", NOT_TEXT, False)
    nameable = {key: entry for key, entry in pending.items() if is_text(entry.uri)}
    for key in pending.keys() - nameable.keys():
        failures.append(_failure(key, pending[key].uri, "probe", nameless))
    for key, result in zip(nameable, probing.probe(list(nameable.values())), strict=True):
        if isinstance(result, ProbeError):
            failures.append(_failure(key, nameable[key].uri, "probe", result))
            continue
        try:
            rows.append(_video(source, key, nameable[key], result))
        except Unusable as reason:
            failures.append(
                _failure(key, nameable[key].uri, "probe", ProbeError(reason.error_type, str(reason), False))
            )
    return rows, failures


def _video(source: Source, key: str, entry: Entry, header: Header) -> dict[str, Any]:
    relative = entry.uri.removeprefix(source.uri).lstrip("/") or entry.uri.rsplit("/", 1)[-1]
    found = source.place(relative)
    return {
        "video_id": key,
        "uri": entry.uri,
        "dataset": source.dataset or found.dataset,
        "split": source.split or found.split_of(entry.uri),
        "class_label": found.class_label,
        "bytes": entry.bytes,
        "etag": entry.etag,
        **header._asdict(),
        "added_at": now(),
    }


def _failure(video: str | None, uri: str, stage: str, error: ProbeError) -> dict[str, Any]:
    return Failure(
        scope="video" if video else "listing",
        stage=stage,
        video_id=video,
        uri=uri.encode("utf-8", "backslashreplace").decode(),
        decoder=f"pyav {av.__version__}",
        **error._asdict(),
    ).to_row()
