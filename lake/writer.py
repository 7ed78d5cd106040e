"""The one way into the tables of a lake: commits that are fenced, checked, recognized when their answer is lost.

A fence is a table property, `worldlake.fence`. Delta refuses a commit whose handle is older than a change of the
table's metadata, whatever the commit does and which program makes it. So a `forget` that gives every table a new fence
has ended every writer that was open before, however long it was paused: a writer notes the fences before it reads what
it goes by, and stops when one has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import pyarrow as pa
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from lake.errors import Fenced, Superseded
from lake.log import Log
from lake.metrics import COMMIT_RETRIES
from lake.retry import Schedule, retry
from lake.schemas import IMAGES, TABLES, missing_columns
from lake.storage import join
from lake.store_errors import final_error
from lake.tables import FENCE, STATISTICS_BYTES, DataFile, Lake, is_outdated, to_table, versioned

# Together about ten minutes: longer than a restart of an object store, shorter than a night.
COMMITS = Schedule((0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 60, 60, 120, 120, 120))

Note = Callable[[str], None]
Check = Callable[[DeltaTable], None]
Fences = Mapping[str, str]


def fences(lake: Lake, names: Iterable[str] = TABLES) -> Fences:
    """Return the fences of tables now. Read them first, then what the writer goes by (tombstones, what is decided).

    Raises Refused where an older worldlake made a table.
    """
    names = list(names)
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: fence_of(lake.writable(name)), names), strict=True))


def raise_fences(lake: Lake, on_retry: Note = lambda message: None) -> None:
    """End every writer that is open, in every table. Who opens from now on reads what was committed before this.

    Raises:
        OSError, DeltaError: a table cannot be written, also after minutes of trying.
    """
    for name in TABLES:
        fence = uuid4().hex

        def write(name: str = name, fence: str = fence) -> None:
            table = lake.table(name)
            # After a lost answer it is there already.
            if fence_of(table) != fence:
                table.alter.set_table_properties({FENCE: fence}, raise_if_not_exists=False)
            lake.flush(name)

        _patiently(lake, name, write, on_retry, "maintenance")


def add_columns(lake: Lake, name: str, on_retry: Note = lambda message: None) -> list[str]:
    """Give a table the columns that it lacks, and end every writer that is open there; returns their names.

    Raises as `raise_fences`.
    """
    added: list[str] = []

    def change() -> None:
        table = lake.table(name)
        if missing := missing_columns(pa.schema(table.schema().to_arrow()), name):
            table.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields)
            added.extend(column.name for column in missing)
            table = lake.table(name)
        # Last, and in one commit: a table of this version has every column, and no writer from before.
        if is_outdated(table, name):
            table.alter.set_table_properties({**versioned(name), FENCE: uuid4().hex}, raise_if_not_exists=False)
        lake.flush(name)

    _patiently(lake, name, change, on_retry, "maintenance")
    return added


class Writer:
    """Commits rows and files under one application id. A new one reads the state of the lake at that moment.

    Every commit carries a transaction of the id with a version that only this writer gives out: after an unclear
    answer, that version in the reloaded table says that the commit went through.
    """

    def __init__(
        self,
        lake: Lake,
        app_id: str | None = None,
        on_retry: Note = lambda message: None,
        *,
        known: Fences | None = None,
        source: str = "maintenance",
    ) -> None:
        """Open a writer: `known` are fences read before what is to be written was, else they are read now."""
        self.lake = lake
        self.app_id = app_id or f"writer/{uuid4().hex}"
        self.fences = fences(lake) if known is None else known
        self._on_retry = on_retry
        self._source = source
        self._seq = 0

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows, if there are any; see `commit` for what it raises."""
        if rows:
            self.write(name, rows)

    def write(
        self,
        name: str,
        rows: list[dict[str, Any]],
        check: Check = lambda table: None,
        also: Sequence[Transaction] = (),
        replacing: tuple[str, Sequence[str]] = ("", ()),
    ) -> None:
        """Append rows, or put them in the place of those whose column is among some values; in one commit.

        `check` may refuse the handle that the commit is made on, and `also` are transactions beside the writer's own.
        Raises as `commit`.
        """
        column, values = replacing
        if values:

            def overwrite(table: DeltaTable, properties: CommitProperties) -> None:
                _overwrite(table, properties, name, rows, column, values)

            self._through(name, self._next(), check, overwrite, also)
        else:
            folder = self.app_id.replace("/", "-").replace(":", "-")
            self.commit(name, [self.lake.write_file(to_table(name, rows), name, folder)], None, check, also)

    def commit(
        self,
        name: str,
        files: Sequence[DataFile],
        version: int | None = None,
        check: Check = lambda table: None,
        also: Sequence[Transaction] = (),
        also_actions: Sequence[AddAction | RemoveAction] = (),
    ) -> None:
        """Make files part of a table, all or none, as the `version` of this writer's transaction (default: the next).

        `also` and `also_actions` are transactions and actions of the same commit.

        Raises:
            Fenced: a `forget` came by since this writer opened; nothing was committed.
            FileNotFoundError: a file vanished or has another size than its worker wrote.
            OSError, DeltaError, Refused, Unavailable: the table cannot be written; what may pass was waited for.
        """

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            self._check_files(name, files)
            actions = [*also_actions, *(file.as_action() for file in files)]
            table.create_write_transaction(actions, mode="append", schema=table.schema(), commit_properties=properties)

        try:
            self._through(name, version or self._next(), check, write, also)
        except Fenced:
            # Nobody can commit them any more, and they may hold what was forgotten. But those of a commit whose answer
            # was lost, and that a successor has followed, are in the table.
            named = Log(self.lake, name).named
            for file in files:
                if file.path not in named:
                    self.lake.storage.delete(join(self.lake.table_uri(name), file.path))
            raise

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _through(
        self,
        name: str,
        version: int,
        check: Check,
        write: Callable[[DeltaTable, CommitProperties], None],
        also: Sequence[Transaction],
    ) -> None:
        properties = CommitProperties(app_transactions=[Transaction(self.app_id, version), *also])

        def attempt() -> None:
            table = self.lake.writable(name)
            # The answer may have been lost after the commit went through.
            if table.transaction_version(self.app_id) != version:
                self._refuse_fenced(name, table)
                check(table)
                write(table, properties)
            # Also what another process has committed before: it may have been killed before it did.
            self.lake.flush(name)

        _patiently(self.lake, name, attempt, self._on_retry, self._source)

    def _refuse_fenced(self, name: str, table: DeltaTable) -> None:
        if fence_of(table) != self.fences[name]:
            raise Fenced(
                "videos of this lake were forgotten, or it was repaired or upgraded meanwhile, which ends what was "
                "being written: run the command again to resume"
            )

    def _check_files(self, name: str, files: Sequence[DataFile]) -> None:
        if not files:
            return
        filesystem, root = self.lake.storage.filesystem(self.lake.table_uri(name))
        infos = filesystem.get_file_info([f"{root}/{file.path}" for file in files])
        for file, info in zip(files, infos, strict=True):
            if info.type != fs.FileType.File or info.size != file.bytes:
                raise FileNotFoundError(f"{name}/{file.path} is missing or not of {file.bytes} bytes")


def _overwrite(
    table: DeltaTable,
    properties: CommitProperties,
    name: str,
    rows: list[dict[str, Any]],
    column: str,
    values: Sequence[str],
) -> None:
    # `DeltaTable.delete` would leave files whose strings are views, and Arrow cannot filter those; what is overwritten
    # keeps its types.
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    content = to_table(name, rows)
    # An older worldlake may have made columns that are no longer in use; delta-rs refuses rows without them.
    schema = pa.schema(table.schema().to_arrow())
    for field in schema:
        if field.name not in content.schema.names:
            content = content.append_column(field, pa.nulls(len(content), field.type))
    write_deltalake(
        table,
        content.select(schema.names),
        mode="overwrite",
        predicate=f"{column} IN ({listed})",
        writer_properties=rewritten(name),
        commit_properties=properties,
    )


def rewritten(name: str) -> WriterProperties:
    """Return how files that delta-rs rewrites are written: as ours, without dictionaries of images."""
    images = [column for column in IMAGES if column in TABLES[name].names]
    return WriterProperties(
        compression="ZSTD",
        max_row_group_size=_IMAGE_ROWS if images else None,
        statistics_truncate_length=STATISTICS_BYTES,
        column_properties=dict.fromkeys(images, ColumnProperties(dictionary_enabled=False)),
    )


# Rows with two images of some 10 kB each: row groups of about 50 MB, so that a reader of pixels stays small.
_IMAGE_ROWS = 2_000


def fence_of(table: DeltaTable) -> str:
    """Return the fence of a table in the version of a handle."""
    return str(table.metadata().configuration.get(FENCE, ""))


def _patiently(lake: Lake, name: str, attempt: Callable[[], None], on_retry: Note, source: str) -> None:
    """Repeat an attempt at a commit while what fails may pass: conflicts, a store that is away."""

    def note(error: Exception, wait_s: float) -> None:
        COMMIT_RETRIES.record(1, source=source)
        on_retry(f"commit of {name} failed, trying again in {wait_s} s: {error}")

    retry(attempt, COMMITS, partial(may_pass, uri=lake.table_uri(name)), note)


def may_pass(error: Exception, uri: str) -> bool:
    """Return whether a commit may succeed in a while. Raises the one line with the remedy where no wait can help."""
    if isinstance(error, Superseded | FileNotFoundError) or not isinstance(error, DeltaError | OSError):
        return False
    if why := final_error(error, uri):
        raise why from error
    return True
