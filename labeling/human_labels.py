"""Ingesting what people labeled: rows of a manifest become triples under the labeler `human:<data set>`.

`progress` says which videos and pairs of images are finished, so that a second run opens only what is new, and the
committer of the labeler makes it exactly once.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc
from PIL import Image

from labeling.frame_reader import Outcome, Unit, reader
from lake import catalog, tombstones
from lake.commits import Committer
from lake.errors import Refused
from lake.failures import MESSAGE_LENGTH, Failure
from lake.ids import content_id, triple_id, video_id
from lake.layouts import find_mapping
from lake.manifest import Labeled, Manifest, Origin, read_manifest
from lake.mapping import Mapping as Layout
from lake.mapping import Place, check_split
from lake.runs import Run, new_run_id, states
from lake.storage import normalize
from lake.tables import Lake, now, to_table

POLICY_ID = "human"
# The size at which the paper trains on AURORA.
IMAGE_SIZE = 256
# A commit makes a file a table: every ten seconds as in labeling, or when this many rows wait in memory.
_COMMIT_S, _COMMIT_ROWS = 10.0, 1000


@dataclass
class LabeledCounts:
    """Rows: listed = triples + failed + known; `known` are in the lake already, also as failures of an earlier run."""

    listed: int = 0
    triples: int = 0
    failed: int = 0
    known: int = 0


@dataclass(frozen=True)
class LabeledOptions:
    """Options of an ingest: data set and split for all rows (None: by mapping), side of the images in pixels, whether
    to try again what failed for good, and whether to take in again what was forgotten."""

    dataset: str | None = None
    split: str | None = None
    image_size: int = IMAGE_SIZE
    retry_failed: bool = False
    bring_back: bool = False


def ingest_labeled(
    lake: Lake,
    sources: Sequence[str],
    layout: str,
    options: LabeledOptions = LabeledOptions(),
    on_progress: Callable[[LabeledCounts], None] = lambda counts: None,
) -> tuple[catalog.IngestCounts, LabeledCounts]:
    """Read labeled rows, catalog their videos, and make triples of them.

    `layout` is the name of a preset, or a YAML file with a `mapping.Mapping`; one that has rows.

    Raises:
        Refused: a source or a manifest cannot be used, the labeler has triples of another image size, or a run of it
            is live.
        Unavailable: the store does not answer.
    """
    mapping = find_mapping(layout)
    if mapping is None or not mapping.is_labeled:
        raise Refused(f"the format {layout!r} has no labeled rows")
    check_split(options.split)
    if not sources:
        raise Refused("no source given: name a folder or s3://bucket/folder that holds the data set")
    for uri in sources:
        lake.storage.check(uri, must_exist=True)
    manifests = {uri: read_manifest(lake.storage, uri, mapping) for uri in map(normalize, sources)}
    lake.create()
    videos = catalog.IngestCounts()
    if mapping.video:
        videos = catalog.ingest(
            lake,
            sources,
            dataset=options.dataset,
            layout=layout,
            split=options.split,
            retry_failed=options.retry_failed,
            bring_back=options.bring_back,
            places={uri: manifest.places for uri, manifest in manifests.items()},
        )
    return videos, _Work(lake, mapping, options, on_progress).do(manifests)


@dataclass
class _Pending:
    """Rows that wait for the next commit."""

    triples: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return {"triples": self.triples, "failures": self.failures, "progress": self.progress}

    def is_due(self) -> bool:
        waiting = sum(map(len, self.tables().values()))
        return waiting >= _COMMIT_ROWS or (waiting > 0 and time.monotonic() - self.since >= _COMMIT_S)


class _Work:
    """One run over the rows of one mapping."""

    def __init__(
        self, lake: Lake, mapping: Layout, options: LabeledOptions, on_progress: Callable[[LabeledCounts], None]
    ) -> None:
        self._lake, self._mapping, self._options, self._on_progress = lake, mapping, options, on_progress
        self._labeler = f"human:{mapping.name}"
        self._counts = LabeledCounts()
        self._pending = _Pending()

    def do(self, manifests: Mapping[str, Manifest]) -> LabeledCounts:
        self._refuse_other_size()
        signatures = self._signatures(manifests)
        config = {
            "sources": list(manifests),
            "mapping": self._mapping.model_dump(mode="json", exclude_defaults=True),
            "image_size": self._options.image_size,
            "manifests": signatures,
        }
        run = Run(
            self._lake, new_run_id(), "ingest", config, self._labeler, POLICY_ID, counts=vars(self._counts), alone=True
        )
        with run, reader(self._lake.storage, self._options.image_size) as reading:
            self._committer = Committer(self._lake, self._labeler, run.run_id)
            self._committer.fence()
            self._read_counts()
            for manifest in manifests.values():
                self._counts.listed += len(manifest.rows) + len(manifest.unusable) + manifest.classes
                self._counts.known += manifest.classes
                self._note_unusable(manifest)
            todo = self._unfinished(units(manifests, self._mapping, self._options), signatures)
            decided = self._committer.decided(unit.video_id for unit in todo)
            self._decided = {id_ for ids in decided.values() for id_ in ids}
            try:
                for outcome in reading.read(self._without_decided(todo)):
                    self._settle(outcome)
                    if self._pending.is_due():
                        self._commit()
            finally:
                self._commit()
        return self._counts

    def _refuse_other_size(self) -> None:
        mine = pc.field("labeler_id") == self._labeler
        first = self._lake.dataset("triples").head(1, columns=["obs"], filter=mine)["obs"].to_pylist()
        if first and (size := Image.open(io.BytesIO(first[0])).size[0]) != self._options.image_size:
            raise Refused(
                f"the images of {self._labeler} are {size} pixels wide in this lake, not {self._options.image_size}: "
                f"give --image-size {size}, or use another lake"
            )

    def _signatures(self, manifests: Mapping[str, Manifest]) -> dict[str, str]:
        """By manifest, what its rows depend on: mapping and bytes. Paths that are rows depend on the mapping only."""
        mapping = self._mapping.model_dump(mode="json")
        if self._mapping.manifest is None:
            return {"": content_id(mapping)}
        files = {row.origin.manifest for manifest in manifests.values() for row in manifest.rows}
        return {file.uri: content_id([mapping, file.etag]) for file in files}

    def _read_counts(self) -> None:
        """Read what earlier runs finished, and what failed in them."""
        mine = pc.field("labeler_id") == self._labeler
        columns = ["video_id", "run_id", "failed", "finished_at"]
        finished = self._lake.read("progress", columns, mine).to_pylist()
        self._finished = {row["video_id"]: row for row in sorted(finished, key=lambda row: row["finished_at"])}
        self._seen = {run.run_id: run.config.get("manifests", {}) for run in states(self._lake)}
        self._attempts: dict[str, int] = {}
        for row in self._lake.read("failures", ["video_id", "attempt"], mine).to_pylist():
            self._attempts[row["video_id"]] = max(self._attempts.get(row["video_id"], 0), row["attempt"])

    def _note_unusable(self, manifest: Manifest) -> None:
        for origin, reason in manifest.unusable:
            key = video_id(f"{origin.manifest.uri}#{origin.number}", origin.manifest.etag)
            if key in self._attempts and not self._options.retry_failed:
                self._counts.known += 1
                continue
            why = Failure(scope="pair", stage="manifest", error_type=reason.error_type, message=str(reason))
            self._fail(key, origin.manifest.uri, origin, why)

    def _unfinished(self, all_units: Iterator[Unit], signatures: dict[str, str]) -> list[Unit]:
        todo, found, away = [], list(all_units), tombstones.read(self._lake)
        left_alone = {unit.uri for unit in found if away.covers(unit.uri)}
        if left_alone and self._options.bring_back:
            tombstones.bring_back(self._committer.writer, left_alone)
            left_alone = set()
        for unit in found:
            if unit.uri in left_alone or self._is_finished(unit, signatures):
                self._counts.known += len(unit.rows)
            else:
                todo.append(unit)
        return todo

    def _is_finished(self, unit: Unit, signatures: dict[str, str]) -> bool:
        finished = self._finished.get(unit.video_id)
        if finished is None or (finished["failed"] and self._options.retry_failed):
            return False
        seen = self._seen.get(finished["run_id"], {})
        manifests = {row.origin.manifest.uri for row in unit.rows} if self._mapping.manifest else {""}
        return all(seen.get(uri) == signatures[uri] for uri in manifests)

    def _without_decided(self, todo: list[Unit]) -> Iterator[Unit]:
        """The units that have to be read: what a pair of images is called is known before."""
        for unit in todo:
            if unit.is_pair and triple_id(unit.video_id, 0, 1, self._labeler) in self._decided:
                self._counts.known += len(unit.rows)
                self._finish(unit, accepted=0, failed=0)
            else:
                yield unit

    def _settle(self, outcome: Outcome) -> None:
        unit = outcome.unit
        before = self._counts.triples, self._counts.failed
        actions: dict[str, str] = {}
        for row, (obs_pts, obs), (next_pts, next_obs) in outcome.pairs:
            id_ = triple_id(unit.video_id, obs_pts, next_pts, self._labeler)
            if actions.get(id_, row.action) != row.action:
                message = f"the same frames are labeled {actions[id_]!r} already"
                why = Failure(scope="pair", stage="manifest", error_type="SecondLabel", message=message)
                self._fail(unit.video_id, unit.uri, row.origin, why)
            elif id_ in self._decided:
                self._counts.known += 1
            else:
                times = _times(outcome.time_base, obs_pts, next_pts)
                images = {"obs": obs, "next_obs": next_obs}
                self._pending.triples.append({**self._triple(unit, row), "triple_id": id_, **times, **images})
                self._counts.triples += 1
                self._decided.add(id_)
                actions[id_] = row.action
        for row, why in outcome.failures:
            self._fail(unit.video_id, unit.uri, row.origin, why)
        may_succeed = any(why.transient for _, why in outcome.failures)
        if not may_succeed or self._attempts.get(unit.video_id, 0) + 1 >= catalog.MAX_ATTEMPTS:
            self._finish(unit, self._counts.triples - before[0], self._counts.failed - before[1])
        self._on_progress(self._counts)

    def _triple(self, unit: Unit, row: Labeled) -> dict[str, Any]:
        return {
            "run_id": self._committer.run_id,
            "labeler_id": self._labeler,
            "policy_id": POLICY_ID,
            "video_id": unit.video_id,
            "uri": unit.uri,
            "dataset": unit.dataset,
            "split": unit.split,
            "action": row.action,
            "labeled_at": now(),
        }

    def _fail(self, key: str, uri: str, origin: Origin, why: Failure) -> None:
        self._counts.failed += 1
        failure = replace(
            why,
            message=f"{origin}: {why.message}"[:MESSAGE_LENGTH],
            video_id=key,
            uri=uri,
            labeler_id=self._labeler,
            run_id=self._committer.run_id,
            attempt=self._attempts.get(key, 0) + 1,
            decoder=f"pyav {version('av')}",
        )
        self._pending.failures.append(failure.to_row())

    def _finish(self, unit: Unit, accepted: int, failed: int) -> None:
        sampled = len(unit.rows)
        self._pending.progress.append(
            {
                "video_id": unit.video_id,
                "labeler_id": self._labeler,
                "run_id": self._committer.run_id,
                "sampled": sampled,
                "accepted": accepted,
                "rejected": 0,
                "failed": failed,
                "decided_before": sampled - accepted - failed,
                "finished_at": now(),
            }
        )

    def _commit(self) -> None:
        pending, self._pending = self._pending, _Pending()
        run_id = self._committer.run_id
        self._committer.commit(
            self._lake.write_file(to_table(name, rows), name, run_id) for name, rows in pending.tables().items() if rows
        )


def units(manifests: Mapping[str, Manifest], mapping: Layout, options: LabeledOptions) -> Iterator[Unit]:
    """Rows by the video or the pair of images that they are about, in the order of the manifests."""
    rows: dict[str, list[Labeled]] = {}
    places: dict[str, Place] = {}
    for source, manifest in manifests.items():
        for row in manifest.rows:
            key = video_id("\0".join(file.uri for file in row.files), "\0".join(file.etag for file in row.files))
            rows.setdefault(key, []).append(row)
            relative = row.files[0].uri.removeprefix(source).lstrip("/")
            places.setdefault(key, manifest.places[relative] if mapping.video else row.place)
    for key, mine in rows.items():
        place, first = places[key], mine[0]
        split = options.split or place.split_of(first.files[0].uri)
        yield Unit(key, first.files, options.dataset or first.place.dataset, split, tuple(mine))


def _times(time_base: tuple[int, int] | None, obs_pts: int, next_pts: int) -> dict[str, Any]:
    """The columns of a pair's times; images have none but their order."""
    columns: dict[str, Any] = {"obs_pts": obs_pts, "next_pts": next_pts}
    if time_base is not None:
        numerator, denominator = time_base
        columns["time_base"] = f"{numerator}/{denominator}"
        columns["obs_time_s"] = obs_pts * numerator / denominator
        columns["next_time_s"] = next_pts * numerator / denominator
    return columns
