"""Exactly-once commits of what workers wrote: one committer per (lake, labeler), fenced by an epoch.

Every commit carries an application transaction `label/<labeler_id>` with version `epoch << 32 | seq`; a service, whose
uploads are videos of their own, commits beside a run under `live/<labeler_id>`. A committer
that starts raises the epoch in every table; Delta refuses a commit whose handle is older than a transaction of the
same application, so a committer of an older epoch can never add a row again, however long it was paused.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction

from lake.errors import Fenced, Superseded
from lake.metrics import COMMIT_SECONDS
from lake.retry import retry
from lake.s3 import patiently
from lake.schemas import DECISIONS
from lake.tables import DataFile, Lake
from lake.writer import COMMITS, Writer, fence_of, fences, may_pass

ORDER = (*DECISIONS, "failures", "progress")
"""The order of every commit: what was decided about pairs first, and that a video is finished last."""


class Committer:
    """Commits the files of one labeler's workers into `ORDER`. Construct, then `fence()` before anything else."""

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
        # The fences of the lake first: what is read from here on is what may be committed.
        self.writer = Writer(self.lake, self.app_id, self._on_retry, source=self._source)
        self._decided.clear()
        retry(
            self._raise_epochs,
            COMMITS,
            lambda error: isinstance(error, Superseded) or may_pass(error, self.lake.uri),
            lambda error, wait_s: self._on_retry(f"cannot fence older runs, trying again in {wait_s} s: {error}"),
        )

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
        """Return whether `commit` would drop a row of this id."""
        return triple_id in self._decided

    def commit(self, files: Iterable[DataFile]) -> dict[str, list[DataFile]]:
        """Commit files in the order of `ORDER`; returns, by table, what was committed.

        Of rows with one id the first counts, in the order of `files`, and the others are dropped, whatever their table.

        Raises:
            Superseded: another committer took over, or a `forget` came by (`Fenced`); what is not in the tables yet
                never will be by this one.
            FileNotFoundError: a file vanished or has another size than its worker wrote.
        """
        fresh: dict[str, list[DataFile]] = {}
        with COMMIT_SECONDS.timed(source=self._source):
            for kept in filter(None, map(self._without_decided, files)):
                fresh.setdefault(kept.table, []).append(kept)
            for name in ORDER:
                if name in fresh:
                    self._commit_table(name, fresh[name])
        return fresh

    def _raise_epochs(self) -> None:
        self.epoch = max(_epoch(self.lake.table(name).transaction_version(self.app_id)) for name in ORDER) + 1
        # Another committer that starts at the same moment may take the epoch: then the next one is tried.
        if not all(self._raise_epoch(name) for name in ORDER):
            raise Superseded(f"other runs of labeler {self.labeler_id} keep starting: start one at a time")

    def _raise_epoch(self, name: str) -> bool:
        table = self.lake.table(name)
        if _epoch(table.transaction_version(self.app_id)) >= self.epoch:
            return False
        # No look after an error whether it went through: a rival that started at the same moment may have written the
        # same epoch. `fence` takes a higher one then, which is always safe.
        transaction = Transaction(self.app_id, self.epoch << 32)
        table.create_write_transaction(
            [], mode="append", schema=table.schema(), commit_properties=CommitProperties(app_transactions=[transaction])
        )
        self.lake.flush(name)
        return True

    def _without_decided(self, file: DataFile) -> DataFile | None:
        """Return the file, or a copy of it without rows that are decided already, or nothing when none is left."""
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
        self.writer.commit(name, files, self.epoch << 32 | self._seq, self._refuse_superseded)

    def _refuse_superseded(self, table: DeltaTable) -> None:
        found = _epoch(table.transaction_version(self.app_id))
        if found != self.epoch:
            raise Superseded(f"another run of labeler {self.labeler_id} took over (epoch {found}, ours {self.epoch})")


class Claim:
    """The right to work under a name, such as that of a training: the process that claimed it last has it.

    Picklable, so that workers can ask, too. It ends with the next `Claim` of the name and with a `forget`.
    """

    def __init__(self, lake: Lake, name: str) -> None:
        """Take the name from the process that has it; raises as `Writer.commit`."""
        self._lake, self._name = lake, name
        self._fence = fences(lake, ["runs"])
        writer = Writer(lake, name, known=self._fence)
        while True:
            taken = lake.table("runs").transaction_version(name) or 0
            # With a number of its own, so that a rival's commit is not taken for one whose answer was lost.
            self._version = (_epoch(taken) + 1) << 32 | secrets.randbits(32)
            with suppress(_Taken):
                writer.commit("runs", [], self._version, self._refuse_later(taken))
                return

    @property
    def epoch(self) -> int:
        """How often the name has been claimed."""
        return _epoch(self._version)

    def check(self) -> None:
        """Raise Superseded where another process has claimed the name, Fenced where videos were forgotten."""
        table = self._lake.table("runs")
        if fence_of(table) != self._fence["runs"]:
            raise Fenced("videos of this lake were forgotten meanwhile: begin again, under another name")
        if table.transaction_version(self._name) != self._version:
            raise Superseded(f"another process has taken over {self._name}: look there, or begin under another name")

    def _refuse_later(self, taken: int) -> Callable[[DeltaTable], None]:
        def check(table: DeltaTable) -> None:
            if (table.transaction_version(self._name) or 0) != taken:
                raise _Taken

        return check


class _Taken(Exception):
    """Another process claimed the name at the same moment."""


def _epoch(version: int | None) -> int:
    return (version or 0) >> 32
