"""A lake: a folder or an S3 prefix that holds the Delta tables of `lake.schemas`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction

from lake import durable
from lake.errors import Refused
from lake.schemas import DECISIONS, SCHEMA_VERSION, TABLES, completed, missing_columns, stats_columns
from lake.storage import StorageConfig, is_s3, join, lake_uri

Rows = list[dict[str, Any]]
"""Rows of a table or of a block, by column."""
STATISTICS_BYTES = 1024
"""Of a text. All uris under a long prefix have the default, sixty-four, in common, and no file could be pruned."""

VERSION_KEY = "worldlake.schema_version"
FENCE = "worldlake.fence"
"""The table property that ends open writers when it changes; see `lake.writer`."""

# Readers replay the log from the last checkpoint; a streaming run commits every few seconds.
_CONFIGURATION = {
    "delta.checkpointInterval": "50",
    # A version that a training pinned must stay readable for as long as anybody asks where a model came from.
    "delta.enableExpiredLogCleanup": "false",
    "delta.deletedFileRetentionDuration": "interval 1 days",
}

_TYPES = {
    table: {field.name: field.type for field in Schema.from_arrow(columns).fields} for table, columns in TABLES.items()
}
"""Types of columns as Delta has them, by table and column."""

# By log (device and inode of its folder), the version up to which this process knows that it is on the disk.
_FLUSHED: dict[tuple[int, int], int] = {}


def now() -> datetime:
    """The current time as the tables store it."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class DataFile:
    """A Parquet file that a worker wrote and that no commit names yet. `path` is relative to its table."""

    table: str
    path: str
    bytes: int
    rows: int
    written_at: datetime
    stats: str
    triple_ids: tuple[str, ...]
    """The pairs that the file decides; empty for tables that decide none."""

    def as_action(self) -> AddAction:
        """The file as a commit names it."""
        return AddAction(
            path=self.path,
            size=self.bytes,
            partition_values={},
            modification_time=int(self.written_at.timestamp() * 1000),
            data_change=True,
            stats=self.stats,
        )


class Lake:
    """The tables under one uri. Cheap to make, picklable, and holds no open handle."""

    def __init__(self, uri: str, storage: StorageConfig | None = None) -> None:
        self.uri = lake_uri(uri)
        self.storage = storage or StorageConfig()

    def create(self) -> None:
        """Create whatever table is missing. Any number of processes may do so at once.

        Raises:
            Refused: nothing can be written there, or tables of a lake that was in use are gone.
        """
        self.storage.check(self.uri)
        if not is_s3(self.uri):
            try:
                Path(self.uri).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Refused(
                    f"no lake can be made at {self.uri}: {error.strerror}: name a folder to write to"
                ) from None
        versions = {name: self._version(name) for name in TABLES}
        missing = [name for name, version in versions.items() if version is None]
        # A process that creates a lake creates all its tables before anything is written.
        if any(versions.values()) and (lost := [name for name in missing if self._version(name) is None]):
            raise self._lacks(lost[0])
        for name in missing:
            self.create_table(name)

    def create_table(self, name: str) -> None:
        """Create a table, empty, unless there is one."""
        try:
            DeltaTable.create(
                self.table_uri(name),
                TABLES[name],
                mode="ignore",
                configuration={
                    **_CONFIGURATION,
                    **versioned(name),
                },
                storage_options=self.storage.delta_options(self.uri),
                raise_if_key_not_exists=False,
            )
        except CommitFailedError:
            # Another process has created it at the same moment.
            if self._version(name) is None:
                raise
        self.flush(name)

    def table_uri(self, name: str) -> str:
        """Return the uri of a table."""
        return join(self.uri, name)

    def table(self, name: str) -> DeltaTable:
        """A fresh handle on a table's newest version.

        Raises:
            Refused: there is no lake at the uri, or a newer worldlake wrote it.
        """
        try:
            table = DeltaTable(self.table_uri(name), storage_options=self.storage.delta_options(self.uri))
        except TableNotFoundError:
            self.storage.check(self.uri)
            if any(self._version(other) for other in TABLES if other != name):
                raise self._lacks(name) from None
            raise Refused(
                f"no lake at {self.uri} (no table {name}): create it with `worldlake ingest SRC --lake {self.uri}`"
            ) from None
        if (version := _schema_version(table)) > SCHEMA_VERSION:
            raise Refused(
                f"the lake at {self.uri} has schema version {version}, newer than {SCHEMA_VERSION}: upgrade worldlake"
            )
        there = {field.name: field.type for field in table.schema().fields}
        if changed := [name for name, type_ in _TYPES[name].items() if there.get(name, type_) != type_]:
            raise Refused(
                f"another program gave {', '.join(changed)} of {self.table_uri(name)} another type: restore an earlier "
                "version of the table"
            )
        return table

    def writable(self, name: str) -> DeltaTable:
        """As `table`; also refuses a table that lacks columns, as those that an older worldlake made do."""
        table = self.table(name)
        if is_outdated(table, name):
            raise Refused(
                f"the table {name} of the lake at {self.uri} is older than schema version {SCHEMA_VERSION}, or lacks "
                f"columns of it: run `worldlake maintain --upgrade --lake {self.uri}`"
            )
        return table

    def read(self, name: str, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
        """Chosen columns of the rows that satisfy `where`, from the newest version of a table."""
        return self.dataset(name).to_table(columns=list(columns), filter=where)

    def dataset(self, name: str, table: DeltaTable | None = None, prune: str | None = None) -> pads.Dataset:
        """A table (its newest version, or the one of a handle) as a pyarrow dataset: projection and filter pushdown.

        Columns that an older lake lacks are null. `prune`, a SQL condition on `stats_columns`, leaves out files that
        hold no such row, and other rows of the rest in: a millisecond for each file not described to Arrow.
        """
        # With deltalake's own file system, which is written in Python, reads ahead that a LIMIT leaves behind deadlock
        # when the interpreter ends.
        dataset = (table or self.table(name)).to_pyarrow_dataset(
            filesystem=self.storage.subtree(self.table_uri(name)), file_pruning_predicate=prune
        )
        return dataset.replace_schema(completed(dataset.schema, name))

    def write_file(self, table: pa.Table, name: str, run_id: str) -> DataFile:
        """Write rows as one durable Parquet file under a table, for a committer to name in a commit.

        Raises:
            ValueError: the rows are not of the table's schema (a commit would not notice).
        """
        if table.schema.names != TABLES[name].names:
            raise ValueError(f"{name}: columns {table.schema.names} are not {TABLES[name].names}")
        table = table.cast(TABLES[name])
        path = f"{run_id}/{uuid.uuid4().hex}.parquet"
        sink = pa.BufferOutputStream()
        # Image bytes are compressed already, so a dictionary only costs; zstd pays for the text columns.
        pq.write_table(
            table, sink, compression="zstd", use_dictionary=_repeated(name), write_statistics=stats_columns(name)
        )
        data = sink.getvalue()
        self.storage.put(join(self.table_uri(name), path), data.to_pybytes())
        ids = tuple(table["triple_id"].to_pylist()) if name in DECISIONS else ()
        return DataFile(name, path, data.size, table.num_rows, now(), _stats(table, name), ids)

    def flush(self, name: str) -> None:
        """Bring the commits of a local table to the disk, and what delta-rs wrote for them.

        Those of other processes, too: a commit counts for nothing without the ones before it.
        """
        if is_s3(self.uri) or not durable.is_on():
            return
        root = Path(self.table_uri(name))
        folder = root / "_delta_log"
        log = (folder.stat().st_dev, folder.stat().st_ino)
        # A folder that was deleted may leave its number to the log of another table.
        if log not in _FLUSHED or not (folder / f"{_FLUSHED[log]:020}.json").exists():
            _FLUSHED[log] = _flushed_by_others(folder)
        for version in count(max(_FLUSHED[log] + 1, 0)):
            commit = folder / f"{version:020}.json"
            if not commit.exists():
                return
            for action in map(json.loads, commit.read_text().splitlines()):
                # Files of workers have been flushed where they were written; those of delta-rs are at the root.
                if "add" in action and "/" not in action["add"]["path"] and (root / action["add"]["path"]).exists():
                    durable.flush(root / action["add"]["path"])
            durable.flush(commit)
            # delta-rs writes a checkpoint after every fiftieth commit; `lake.repair` deletes one that is not whole.
            self._flush_checkpoint(name, version)
            _FLUSHED[log] = version

    def checkpoint(self, table: DeltaTable, name: str) -> None:
        """Write a checkpoint of the version of a handle, so that readers need not read the log before it."""
        table.create_checkpoint()
        if not is_s3(self.uri):
            self._flush_checkpoint(name, table.version())

    def _flush_checkpoint(self, name: str, version: int) -> None:
        folder = Path(self.table_uri(name), "_delta_log")
        checkpoint = folder / f"{version:020}.checkpoint.parquet"
        if checkpoint.exists():
            durable.flush(checkpoint)
            durable.flush(folder / "_last_checkpoint")

    def _version(self, name: str) -> int | None:
        """The newest version of a table; None where there is none."""
        # `DeltaTable.is_deltatable` holds the interpreter's lock while it waits for a store.
        try:
            return DeltaTable(self.table_uri(name), storage_options=self.storage.delta_options(self.uri)).version()
        except TableNotFoundError:
            return None

    def _lacks(self, name: str) -> Refused:
        return Refused(f"the lake at {self.uri} lacks its table {name}: look with `worldlake repair --lake {self.uri}`")


def versioned(name: str) -> dict[str, str]:
    """The properties of a table that depend on its columns."""
    return {"delta.dataSkippingStatsColumns": ",".join(stats_columns(name)), VERSION_KEY: str(SCHEMA_VERSION)}


def is_outdated(table: DeltaTable, name: str) -> bool:
    """Return whether an older worldlake made the table."""
    return _schema_version(table) < SCHEMA_VERSION or bool(missing_columns(pa.schema(table.schema().to_arrow()), name))


def _schema_version(table: DeltaTable) -> int:
    return int(table.metadata().configuration.get(VERSION_KEY, "0"))


def _flushed_by_others(log: Path) -> int:
    """A version whose commits have reached the disk long ago: a checkpoint interval before the newest checkpoint.

    Writers flush each commit; one that is killed before it does is followed by others that do.
    """
    checkpoints = [int(path.name[:20]) for path in log.glob("*.checkpoint*.parquet")]
    return max(checkpoints, default=0) - int(_CONFIGURATION["delta.checkpointInterval"]) - 1


def _repeated(name: str) -> list[str]:
    columns = ("video_id", "uri", "run_id", "labeler_id", "policy_id", "dataset", "split", "time_base", "action")
    return [column for column in columns if column in TABLES[name].names]


def to_table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the schema of `name`; columns that a row leaves out are null.

    Raises:
        ValueError: a row has a column that the table lacks.
    """
    for row in rows:
        if unknown := set(row) - set(TABLES[name].names):
            raise ValueError(f"{name} has no column {sorted(unknown)}")
    return pa.Table.from_pylist(rows, schema=TABLES[name])


def _stats(table: pa.Table, name: str) -> str:
    """File statistics as the Delta protocol writes them ("Per-file Statistics"): JSON of min, max and null counts."""
    minimum: dict[str, Any] = {}
    maximum: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for column in stats_columns(name):
        values = table[column]
        nulls[column] = values.null_count
        if values.null_count < len(values):
            bounds = pc.min_max(values).as_py()
            minimum[column], maximum[column] = _stat(bounds["min"]), _stat(bounds["max"])
    stats = {"numRecords": table.num_rows, "minValues": minimum, "maxValues": maximum, "nullCount": nulls}
    return json.dumps(stats, ensure_ascii=False)


def _stat(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value
