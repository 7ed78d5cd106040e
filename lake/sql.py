"""SQL over a lake in an embedded DuckDB: read only, and only the columns and files that a query needs.

DuckDB scans the tables as Arrow datasets at pinned versions, so a query sees one state of each table, filters and
projections reach the Parquet files, and nothing but those tables is read or written. Images come back as bytes when a
query names them: see ``write_result`` for how they are shown.
"""

import base64
import csv
import datetime as dt
import decimal
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import duckdb
import pyarrow as pa

from lake import runs
from lake.errors import Refused, TooMuchMemory, one_line
from lake.tables import Lake
from lake.timer import after

# A table is opened after those that are written before it: a video that `progress` calls finished has its rows in
# `triples` and `rejections`, and a triple has its video.
_OPENING_ORDER = ("runs", "reviews", "tokens", "progress", "failures", "rejections", "triples", "videos")
_BATCH_ROWS = 1000
FORMATS = ("table", "csv", "json", "arrow")
# More rows do not help a reader; the other formats give all.
_TABLE_ROWS = 100
_CELL_WIDTH = 60
_NO_TABLE = re.compile(r"Catalog Error: (Table|View) with name")
MEMORY = "the query needs more memory than there is for it: narrow the query"
_ONE_SELECT = "a lake is queried with exactly one SELECT (or DESCRIBE, SHOW, EXPLAIN of one); it is read only"
# Of DuckDB's parse trees. A data-modifying WITH is a node of another kind, also below a SELECT.
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# Others read files, run SQL that stands in a text, follow pointers, or change what DuckDB does.
_TABLE_FUNCTIONS = {
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types", "duckdb_views",
    "generate_series", "histogram", "histogram_values", "icu_calendar_names", "json_each", "json_tree",
    "pg_timezone_names", "pragma_table_info", "query_table", "range", "repeat", "repeat_row", "summary", "unnest",
}  # fmt: skip
# Of all others: one plans SQL that stands in a text, one writes.
_REFUSED_FUNCTIONS = {"json_serialize_plan", "write_log"}
# `$..type` finds the kinds of all nodes at any depth, without a limit on recursion as Python's parser has one.
_TREE = """
WITH tree AS (SELECT json_serialize_sql($sql::VARCHAR) AS t)
SELECT coalesce(json_array_length(t -> '$.statements'), 0), t ->> '$..type', t ->> '$..function.function_name',
       t ->> '$..function_name'
FROM tree
"""
# UHUGEINT becomes a decimal that is too short for it; time zones of a time of day get lost; the others are bytes.
_NOT_IN_ARROW = re.compile(r"\b(UHUGEINT|TIME WITH TIME ZONE|BIT|BIGNUM|VARIANT)\b")
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_EXPLAIN = re.compile(r"\s*EXPLAIN\b", re.IGNORECASE)
# First what may be set only while files can be reached: without it DuckDB lets queries reach those that an in-memory
# database might have had, and its folder for spilling.
_CONFINE = """
SET allowed_paths = []; SET allowed_directories = []; SET temp_directory = ''; SET max_temp_directory_size = '0B';
SET autoinstall_known_extensions = false; SET autoload_known_extensions = false;
SET allow_community_extensions = false; SET enable_external_access = false;
SET TimeZone = 'UTC'; SET lock_configuration = true
"""
# DuckDB's names of errors that a query makes; those of reading files are not among them.
_WHILE_STREAMING = re.compile(r"(Conversion|Invalid Input|Out of Range|Binder|Constraint|Not implemented) Error:")


@contextmanager
def query(
    lake: Lake,
    sql: str,
    parameters: Mapping[str, object] | None = None,
    *,
    seconds: float | None = None,
    threads: int | None = None,
    on_open: Callable[[], object] = lambda: None,
) -> Iterator[pa.RecordBatchReader]:
    """Run one SELECT and yield its result, which streams.

    There is a view for every table, ``current`` (triples of the labeler that finished last; empty before one has) and
    ``triples_<first 8 digits>`` for every labeler (``triples_human_aurora`` for ``human:aurora``). ``$name`` in the
    query stands for a parameter. ``on_open`` is called when the tables are open and the query begins; ``seconds`` after
    that, reading included, the query is stopped. It takes ``threads``, or one a core, and never spills to disk.

    Raises:
        Refused: wrong SQL, or anything but one SELECT, DESCRIBE, SHOW or EXPLAIN, or it took too long; also while the
            result is read.
    """
    connection, names = _connect(lake, threads)
    on_open()
    try:
        with connection, _explained(names, seconds), after(seconds, connection.interrupt):
            _refuse_other_statements(connection, sql, names)
            found = connection.sql(sql, params=dict(parameters or {}))
            _refuse_other_types(found)
            yield found.to_arrow_reader(_BATCH_ROWS)
    finally:
        connection.close()


def condition(text: str) -> str:
    """Return a condition on rows, for a WHERE of ours: exactly one expression, in brackets.

    Raises:
        Refused: it is none, or more than one, or would end our statement.
    """
    try:
        duckdb.SQLExpression(text)
    except duckdb.Error as error:
        raise Refused(sql_reason(error)) from None
    # A comment at its end must not take the bracket along.
    return f"({text}\n)"


def write_result(result: pa.RecordBatchReader, output: str, out: IO[bytes]) -> None:
    """Write a result as ``table``, ``csv``, ``json`` (one array of objects) or ``arrow`` (an IPC stream).

    Bytes are base64 in CSV and JSON; the table, which shows the first 100 rows, says what they are: ``<jpeg 12 kB>``.

    Raises:
        Refused: ``json``, and two columns have one name.
    """
    if output == "arrow":
        with pa.ipc.new_stream(out, result.schema) as stream:
            for batch in result:
                stream.write_batch(batch)
        return
    text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
    try:
        {"table": _write_table, "csv": _write_csv, "json": _write_json}[output](result, text)
        text.flush()
    finally:
        text.detach()


def _connect(lake: Lake, threads: int | None) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    tables = {name: lake.dataset(name) for name in _OPENING_ORDER}
    states = runs.states(lake)
    config = {"python_enable_replacements": "false"}
    connection = duckdb.connect(config=config | ({"threads": str(threads)} if threads else {}))
    for name, dataset in tables.items():
        connection.register(name, dataset)
    labelers = sorted({state.labeler_id for state in states if state.labeler_id})
    ended = [state for state in states if state.kind == "label" and state.labeler_id and state.status == "finished"]
    finished = [state.labeler_id for state in sorted(ended, key=lambda state: state.heartbeat_at)]
    views = {"current": finished[-1] if finished else "", **{_view_name(one, labelers): one for one in labelers}}
    for name, labeler in views.items():
        # A view takes no parameters; labeler ids are hexadecimal digits, or `human:` and a name without quotes.
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM triples WHERE labeler_id = '{labeler}'")
    connection.execute(_CONFINE)
    return connection, [*tables, *views]


def _view_name(labeler: str, labelers: list[str]) -> str:
    if not labeler.isalnum():
        return f"triples_{labeler.replace(':', '_').replace('-', '_')}"
    unique = sum(other.startswith(labeler[:8]) for other in labelers) == 1
    return f"triples_{labeler[:8] if unique else labeler}"


@contextmanager
def _explained(names: list[str], seconds: float | None) -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException:
        raise Refused(too_long(seconds)) from None
    except duckdb.OutOfMemoryException:
        raise TooMuchMemory(MEMORY) from None
    except duckdb.PermissionException:
        raise Refused(_only_tables(names)) from None
    except duckdb.Error as error:
        reason = sql_reason(error)
        if _NO_TABLE.match(reason):
            reason = f"{reason.split(' Did you mean')[0]} There are {', '.join(names)}"
        raise Refused(reason) from None
    except (OSError, pa.ArrowException) as error:
        # What goes wrong while rows stream comes through Arrow as an error of input and output, without a number.
        if "INTERRUPT" in str(error):
            raise Refused(too_long(seconds)) from None
        if str(error).startswith("Out of Memory Error"):
            raise TooMuchMemory(MEMORY) from None
        if not _WHILE_STREAMING.match(str(error)):
            raise
        raise Refused(sql_reason(error)) from None


def sql_reason(error: Exception, limit: int | None = None) -> str:
    """Return what DuckDB says of a query as one line, without the excerpt that shows the place."""
    return one_line(str(error).split("\n\nLINE")[0], limit)


def too_long(seconds: float | None) -> str:
    """Return the message for a query that was stopped."""
    return f"the query exceeded {seconds:g} s and was stopped: narrow the query"


def _only_tables(names: list[str]) -> str:
    return f"only the tables of the lake can be read, no files: {', '.join(names)}"


def _refuse_other_statements(connection: duckdb.DuckDBPyConnection, sql: str, names: list[str]) -> None:
    """Go by the parse tree: a statement of the type SELECT may write in a WITH, and EXPLAIN may run what it explains.

    Raises:
        Refused: it is anything but one SELECT, or EXPLAIN of one without an option; or it reads more than tables.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise Refused(_ONE_SELECT)
    text, kind = statements[0].query, statements[0].type
    if kind == duckdb.StatementType.EXPLAIN and (match := _EXPLAIN.match(text)):
        # An option, such as ANALYZE, makes of the rest something that is not a SELECT.
        text = text[match.end() :]
    count, kinds, sources, functions = connection.execute(_TREE, {"sql": text}).fetchall()[0]
    if count != 1 or any(kind.endswith("_NODE") and kind not in _READING_NODES for kind in kinds):
        raise Refused(_ONE_SELECT)
    others = {name.lower() for name in sources} - _TABLE_FUNCTIONS
    others |= _REFUSED_FUNCTIONS.intersection(map(str.lower, functions))
    if others:
        raise Refused(f"{_only_tables(names)}; not {', '.join(sorted(others))}()")


def _refuse_other_types(found: duckdb.DuckDBPyRelation) -> None:
    """Refuse what Arrow has no type for, and DuckDB hands over as another value, or as bytes without a meaning."""
    for name, kind in zip(found.columns, found.types, strict=True):
        if match := _NOT_IN_ARROW.search(_QUOTED.sub("", str(kind))):
            raise Refused(f"column {name} has the type {match[0]}, which has no equal here: cast it to VARCHAR")


def rows_of(batch: pa.RecordBatch) -> Iterator[list[Any]]:
    """Yield the rows of a result as Python has them. Raises Refused for a value that Python cannot hold."""
    try:
        # Column by column, because two columns may have the same name.
        columns = [_values(column) for column in batch.columns]
    except OverflowError:
        raise Refused("a date is infinite or not in the years 1 to 9999: cast its column to VARCHAR") from None
    except TypeError:
        raise Refused("the keys of a MAP are lists or structs: cast its column to VARCHAR") from None
    yield from map(list, zip(*columns, strict=True))


def _values(column: pa.Array) -> list[Any]:
    # With maps Arrow goes through Python for every value, also of long lists that hold none.
    values: list[Any] = column.to_pylist(**({"maps_as_pydicts": "strict"} if "map<" in str(column.type) else {}))
    return values


def _rows(result: pa.RecordBatchReader) -> Iterator[list[Any]]:
    for batch in result:
        yield from rows_of(batch)


def _write_csv(result: pa.RecordBatchReader, out: IO[str]) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(result.schema.names)
    for row in _rows(result):
        values = [plain(value) for value in row]
        writer.writerow([json.dumps(value) if isinstance(value, list | dict) else value for value in values])


def _write_json(result: pa.RecordBatchReader, out: IO[str]) -> None:
    names = result.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(f"an object of JSON has every name once: give the columns {', '.join(twice)} other names with AS")
    between = "[\n"
    for row in _rows(result):
        named = dict(zip(result.schema.names, map(plain, row), strict=True))
        out.write(between + json.dumps(named, ensure_ascii=False, allow_nan=False))
        between = ",\n"
    out.write("[]\n" if between == "[\n" else "\n]\n")


def plain(value: Any) -> Any:
    """Return a value of a result as JSON has it: bytes as base64, NaN as null, times and intervals in ISO 8601."""
    if value is None or type(value) in (str, int, bool):
        # First, because a list may have millions of them.
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        # DuckDB adds up integers as decimals without a fraction; a float that is not the same number would be wrong.
        is_whole = value.as_tuple().exponent == 0
        return int(value) if is_whole else float(value) if decimal.Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, pa.MonthDayNano):
        return _interval(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if isinstance(value, float) else str(value)


def _interval(value: Any) -> str:
    """In ISO 8601: P1M2DT3.5S. No part is converted into another, because days and months differ in length."""
    days = "".join(f"{number}{unit}" for number, unit in ((value.months, "M"), (value.days, "D")) if number)
    seconds = decimal.Decimal(value.nanoseconds).scaleb(-9).normalize()
    return f"P{days}T{seconds:f}S" if seconds or not days else f"P{days}"


def _write_table(result: pa.RecordBatchReader, out: IO[str]) -> None:
    rows: list[list[str]] = []
    source = _rows(result)
    for row in source:
        rows.append([_cell(value) for value in row])
        if len(rows) == _TABLE_ROWS:
            break
    names = result.schema.names
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for line in [names, ["-" * width for width in widths], *rows]:
        out.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")
    if next(source, None) is not None:
        out.write(f"... the first {_TABLE_ROWS} rows; --format csv, json or arrow gives all\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        kind = "jpeg" if value.startswith(b"\xff\xd8\xff") else "png" if value.startswith(b"\x89PNG") else "bytes"
        return f"<{kind} {max(1, round(len(value) / 1000))} kB>"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    if isinstance(value, dt.datetime):
        return value.isoformat(" ", "seconds")
    value = plain(value) if isinstance(value, pa.MonthDayNano | list | dict) else value
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 1] + "…"
