"""Exactly-once commits of what workers wrote: one committer per (lake, labeler), fenced by an epoch.

Every commit carries an application transaction `label/<labeler_id>` with version `epoch << 32 | seq`; a service, whose
uploads are videos of their own, commits beside a run under `live/<labeler_id>`. A committer
that starts raises the epoch in every table; Delta refuses a commit whose handle is older than a transaction of the
same application, so a committer of an older epoch can never add a row again, however long it was paused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from pyarrow import fs

from lake.errors import Superseded
from lake.metrics import COMMIT_RETRIES, COMMIT_SECONDS
from lake.s3 import patiently
from lake.schemas import DECISIONS
from lake.tables import DataFile, Lake, now

TABLES = (*DECISIONS, "failures", "progress")
"""The order of every commit: what was decided about pairs first, and that a video is finished last."""

# A full vacuum takes files that no commit names after 24 h; half of that leaves room for clocks that differ.
_MAX_FILE_AGE = timedelta(hours=12)
# Together about ten minutes: longer than a restart of an object store, shorter than a night.
_RETRY_WAITS_S = (0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 60, 60, 120, 120, 120)


class Committer:
    """Commits the files of one labeler's workers into `TABLES`. Construct, then `fence()` before anything else."""

    def __init__(
        self,
        lake: Lake,
        labeler_id: str,
        run_id: str,
        on_retry: Callable[[str], None] = lambda message: None,
        *,
        source: Literal["label", "live"] = "label",
    ) -> None:
        self.lake = lake
        self.labeler_id = labeler_id
        self.run_id = run_id
        self.app_id = f"{source}/{labeler_id}"
        self._source = source
        self.epoch = 0
        self._seq = 0
        self._decided: set[str] = set()
        self._on_retry = on_retry

    def fence(self) -> None:
        """Raise the epoch in every table, which ends every older committer of this labeler.

        Raises:
            OSError, DeltaError: a table cannot be written, also after minutes of trying.
        """
        for wait_s in (*_RETRY_WAITS_S, None):
            try:
                self.epoch = max(_epoch(self.lake.table(name).transaction_version(self.app_id)) for name in TABLES) + 1
                # Another committer that starts at the same moment may take the epoch: then the next one is tried.
                if all(self._raise_epoch(name) for name in TABLES):
                    return
            except (CommitFailedError, DeltaError, OSError) as error:
                if wait_s is None:
                    raise
                self._on_retry(f"cannot fence older runs, trying again in {wait_s} s: {error}")
            time.sleep(wait_s or 0)
        raise Superseded(f"other runs of labeler {self.labeler_id} keep starting: start one at a time")

    def decided(self, video_ids: Iterable[str]) -> dict[str, list[str]]:
        """Ids already decided under this labeler, by video; remembered, so that `commit` drops them.

        Call after `fence()`: from then on nobody else decides anything under this labeler.
        """
        wanted = pa.array(list(video_ids), pa.string())
        found: dict[str, list[str]] = {}
        for name in DECISIONS:
            scanner = self.lake.dataset(name).scanner(
                columns=["video_id", "triple_id"], filter=pc.field("labeler_id") == self.labeler_id
            )
            for batch in scanner.to_batches():
                rows = batch.filter(pc.is_in(batch["video_id"], value_set=wanted))
                for video, triple in zip(rows["video_id"].to_pylist(), rows["triple_id"].to_pylist(), strict=True):
                    found.setdefault(video, []).append(triple)
        self._decided.update(id_ for ids in found.values() for id_ in ids)
        return found

    def remember(self, rows: pc.Expression) -> None:
        """Learn which ids are decided under this labeler in some rows, so that `commit` drops them. After `fence()`."""
        for name in DECISIONS:
            mine = (pc.field("labeler_id") == self.labeler_id) & rows
            self._decided.update(self.lake.read(name, ["triple_id"], mine)["triple_id"].to_pylist())

    def is_decided(self, triple_id: str) -> bool:
        """Whether `commit` would drop a row of this id."""
        return triple_id in self._decided

    def commit(self, files: Mapping[str, Sequence[DataFile]]) -> dict[str, list[DataFile]]:
        """Commit files into their tables, in the order of `TABLES`; returns what was committed (without repeats).

        Raises:
            Superseded: another committer took over; what is not in the tables yet never will be by this one.
            FileNotFoundError: a file vanished or has another size than its worker wrote.
        """
        committed: dict[str, list[DataFile]] = {}
        with COMMIT_SECONDS.timed(source=self._source):
            for name in TABLES:
                fresh = [kept for file in files.get(name, ()) if (kept := self._without_decided(file))]
                if fresh:
                    self._commit_table(name, fresh)
                    committed[name] = fresh
        return committed

    def _raise_epoch(self, name: str) -> bool:
        table = self.lake.table(name)
        found = _epoch(table.transaction_version(self.app_id))
        if found >= self.epoch:
            return False
        # No look after an error whether it went through: a rival that started at the same moment may have written the
        # same epoch. `fence` takes a higher one then, which is always safe.
        self._write(table, [], self.epoch << 32)
        return True

    def _without_decided(self, file: DataFile) -> DataFile | None:
        """The file, or a copy of it without rows that are decided already, or nothing when none is left."""
        if not file.rows:
            return None
        if not file.triple_ids:
            return file
        fresh: dict[str, int] = {}
        for row, id_ in enumerate(file.triple_ids):
            if id_ not in self._decided:
                fresh.setdefault(id_, row)
        self._decided.update(fresh)
        if len(fresh) == file.rows:
            return file
        if not fresh:
            return None
        filesystem, root = self.lake.storage.filesystem(self.lake.table_uri(file.table))
        rows = patiently(lambda: pq.read_table(f"{root}/{file.path}", filesystem=filesystem))
        return self.lake.write_file(rows.take(list(fresh.values())), file.table, self.run_id)

    def _commit_table(self, name: str, files: Sequence[DataFile]) -> None:
        self._seq += 1
        version = self.epoch << 32 | self._seq
        for wait_s in (*_RETRY_WAITS_S, None):
            try:
                table = self.lake.table(name)
                found = table.transaction_version(self.app_id)
                if found == version:
                    return
                if _epoch(found) != self.epoch:
                    raise Superseded(
                        f"another run of labeler {self.labeler_id} took over (epoch {_epoch(found)}, ours {self.epoch})"
                    )
                self._check_files(name, files)
                self._write(table, files, version)
                return
            except FileNotFoundError:
                raise
            except (CommitFailedError, DeltaError, OSError) as error:
                # The answer may have been lost after the commit went through: the next round looks.
                if wait_s is None:
                    raise
                COMMIT_RETRIES.record(1, source=self._source)
                self._on_retry(f"commit of {name} failed, trying again in {wait_s} s: {error}")
                time.sleep(wait_s)

    def _write(self, table: DeltaTable, files: Sequence[DataFile], version: int) -> None:
        table.create_write_transaction(
            [file.as_action() for file in files],
            mode="append",
            schema=table.schema(),
            commit_properties=CommitProperties(app_transactions=[Transaction(self.app_id, version)]),
        )

    def _check_files(self, name: str, files: Sequence[DataFile]) -> None:
        filesystem, root = self.lake.storage.filesystem(self.lake.table_uri(name))
        infos = filesystem.get_file_info([f"{root}/{file.path}" for file in files])
        for file, info in zip(files, infos, strict=True):
            if info.type != fs.FileType.File or info.size != file.bytes:
                raise FileNotFoundError(f"{name}/{file.path} is missing or not of {file.bytes} bytes")
            if now() - file.written_at > _MAX_FILE_AGE:
                raise FileNotFoundError(f"{file.path} is older than {_MAX_FILE_AGE}: a vacuum may take it any moment")


def _epoch(version: int | None) -> int:
    return (version or 0) >> 32
