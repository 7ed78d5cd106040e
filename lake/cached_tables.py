"""A lake whose tables stay open between queries, for processes that answer many: what was opened once is only updated.

Opening a table costs about a millisecond and a half a file, most of it for expressions over file statistics, and the
first scan reads the footer of every file. A table of a long run has thousands of files, and a query is there in a
fraction of that. Here a new version adds its new files to those that are open; row groups are left out by the
statistics in the footers, which stay in memory.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from lake.schemas import TABLES, completed
from lake.tables import Lake

_OPEN_FOR_S = 300.0
"""Credentials of an object store, which a handle keeps, may hold for a quarter of an hour."""


@dataclass
class _Open:
    table: DeltaTable
    opened_at: float
    version: int
    fragments: dict[str, pads.ParquetFileFragment]
    dataset: pads.Dataset


class CachedLake(Lake):
    """A `Lake` that holds open handles; safe for threads, not to be pickled. Every read sees the newest version."""

    def __init__(self, lake: Lake) -> None:
        super().__init__(lake.uri, lake.storage)
        self._open: dict[str, _Open] = {}
        self._writers: dict[int, Counter[str]] = {}
        self._locks = {name: threading.Lock() for name in TABLES}

    def dataset(self, name: str, table: DeltaTable | None = None, prune: str | None = None) -> pads.Dataset:
        """As of `Lake`; nothing of a version that is kept needs pruning."""
        return super().dataset(name, table, prune) if table is not None else self._newest(name).dataset

    def versions(self, *names: str) -> tuple[int, ...]:
        """Return the newest versions of tables: while they are the same, so is every answer about them."""
        return tuple(self._newest(name).version for name in names)

    def find(self, name: str, columns: Sequence[str], where: pc.Expression) -> pa.Table:
        """Columns of the rows that satisfy a condition which few do.

        Of row groups without such a row only the columns of the condition are read; images of all others would be
        most of what a table holds.
        """
        opened = self._newest(name)
        schema = opened.dataset.schema
        paths = opened.dataset.to_table(columns=["__filename"], filter=where)["__filename"]
        parts = [schema.empty_table().select(columns)]
        for path in paths.unique().to_pylist():
            groups = opened.fragments[path].split_by_row_group(schema=schema)
            for group in groups:
                if len(groups) == 1 or group.count_rows(filter=where):
                    parts.append(group.to_table(schema=schema, columns=list(columns), filter=where))
        return pa.concat_tables(parts)

    def writers(self, version: int) -> Counter[str]:
        """How many triples each run had written that were there in a version of `triples`; none where it is gone."""
        if version not in self._writers:
            opened = self._newest("triples")
            try:
                then = DeltaTable(
                    self.table_uri("triples"), version=version, storage_options=self.storage.delta_options(self.uri)
                )
                runs = self._opened("triples", then, 0.0, opened.fragments).dataset.to_table(columns=["run_id"])
            except (DeltaError, OSError):
                return Counter()
            counts = pc.value_counts(runs["run_id"].combine_chunks()).to_pylist()
            self._writers[version] = Counter({row["values"]: row["counts"] for row in counts})
        return self._writers[version]

    def _newest(self, name: str) -> _Open:
        with self._locks[name]:
            opened = self._open.get(name)
            if opened is None or time.monotonic() - opened.opened_at > _OPEN_FOR_S:
                opened = self._open[name] = self._opened(name, self.table(name), time.monotonic(), {})
            else:
                opened.table.update_incremental()
                if opened.table.version() != opened.version:
                    opened = self._opened(name, opened.table, opened.opened_at, opened.fragments)
                    self._open[name] = opened
            return opened

    def _opened(
        self, name: str, table: DeltaTable, opened_at: float, before: dict[str, pads.ParquetFileFragment]
    ) -> _Open:
        filesystem, form = self.storage.subtree(self.table_uri(name)), pads.ParquetFileFormat()
        actions = pa.table(table.get_add_actions())
        fragments = {
            path: before.get(path) or form.make_fragment(path, filesystem, file_size=size)
            for path, size in zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)
        }
        schema = completed(pa.schema(table.schema().to_arrow()), name)
        dataset = pads.FileSystemDataset(list(fragments.values()), schema, form, filesystem)
        return _Open(table, opened_at, table.version(), fragments, dataset)
