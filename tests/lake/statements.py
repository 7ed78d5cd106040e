"""A statement of every type that DuckDB has, and other ways to write or to read files, none of which a query may do."""

from __future__ import annotations

import duckdb

# The names that DuckDB itself allows beside a database in memory, its folder for spilling, and another.
_FILES = (":memory:", ":memory:.wal", ".tmp/stolen", "stolen.csv")

BY_TYPE: dict[str, list[str]] = {
    "INSERT": ["INSERT INTO videos (uri) VALUES ('x')"],
    "UPDATE": ["UPDATE videos SET uri = 'x'"],
    "CREATE": [
        "CREATE TABLE made AS SELECT 1 AS a",
        "CREATE SCHEMA s",
        "CREATE SECRET (TYPE s3)",
        "CREATE MACRO f() AS 1",
    ],
    "DELETE": ["DELETE FROM videos"],
    "PREPARE": ["PREPARE p AS SELECT 1"],
    "EXECUTE": ["EXECUTE p"],
    "ALTER": ["ALTER VIEW current RENAME TO other"],
    "TRANSACTION": ["BEGIN", "COMMIT"],
    "COPY": [f"COPY (SELECT 'x' AS a) TO '{name}' (FORMAT csv, USE_TMP_FILE false)" for name in _FILES],
    "ANALYZE": ["ANALYZE"],
    "VARIABLE_SET": ["SET VARIABLE a = 1"],
    "DROP": ["DROP VIEW current"],
    "EXPORT": ["EXPORT DATABASE 'exported'"],
    "PRAGMA": ["PRAGMA database_list", "PRAGMA enable_profiling"],
    "VACUUM": ["VACUUM"],
    "CALL": ["CALL enable_logging(storage = 'file', storage_config = {'path': 'logs'})", "CALL pragma_version()"],
    "SET": ["SET enable_external_access = true", "SET temp_directory = '.tmp'", "RESET threads"],
    "LOAD": ["LOAD httpfs", "INSTALL httpfs"],
    "ATTACH": ["ATTACH 'attached.db'"],
    "DETACH": ["DETACH memory", "USE memory"],
    "MULTI": ["IMPORT DATABASE 'exported'", "PIVOT videos ON dataset"],
    "COPY_DATABASE": ["COPY FROM DATABASE memory TO other"],
    "MERGE_INTO": ["MERGE INTO videos USING triples ON true WHEN MATCHED THEN DELETE"],
}
# No text is of these types.
_NOT_WRITTEN = {"INVALID", "CREATE_FUNC", "RELATION", "EXTENSION", "LOGICAL_PLAN"}

WITHIN_A_SELECT = [
    "WITH x AS (INSERT INTO videos (uri) VALUES ('x') RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE videos SET uri = 'x' RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM videos RETURNING *) SELECT * FROM x",
    "SELECT (WITH x AS (DELETE FROM videos RETURNING uri) SELECT uri FROM x)",
    *(f"WITH x AS (COPY (SELECT 1 AS a) TO '{name}') SELECT 1" for name in _FILES),
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "FROM query('SELECT 1')",
    "FROM enable_logging(storage = 'file', storage_config = {'path': 'logs'})",
    "FROM checkpoint()",
    "SELECT * FROM system.main.read_text('.tmp/stolen')",
    *(f"SELECT * FROM read_text('{name}')" for name in _FILES),
    "SELECT * FROM 'stolen.csv'",
    "SELECT 1 WHERE EXISTS (FROM glob('*'))",
]

READING = [
    "SELECT 1",
    "FROM videos",
    "VALUES (1)",
    "DESCRIBE videos",
    "SHOW TABLES",
    "SUMMARIZE triples",
    "SELECT 1 UNION SELECT 2",
    "WITH RECURSIVE x AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM x WHERE a < 3) FROM x",
    "WITH x AS MATERIALIZED (SELECT 1 AS a) FROM x",
    "FROM (PIVOT videos ON dataset IN ('one') USING count(*))",
    "SELECT unnest([1, 2]), g FROM generate_series(3) AS t(g)",
    "SELECT " + "+".join("1" * 900),
    "EXPLAIN SELECT count(*) FROM triples",
    "-- a comment\n /* and another */ EXPLAIN FROM videos;",
]

_EXPLAINED = ("EXPLAIN", "EXPLAIN ANALYZE", "EXPLAIN (ANALYZE)", "EXPLAIN (ANALYZE, FORMAT json)")


def refused() -> list[str]:
    """Everything that is not reading, by itself and explained, and what is reading, where EXPLAIN would run it."""
    known = set(duckdb.StatementType.__members__)
    assert known == set(BY_TYPE) | _NOT_WRITTEN | {"SELECT", "EXPLAIN"}, "DuckDB has statements of another type"
    writing = [sql for statements in BY_TYPE.values() for sql in statements] + WITHIN_A_SELECT
    analyzed = [f"{how} {sql}" for sql in READING[:-2] for how in _EXPLAINED[1:]]
    return [*writing, *(f"{how} {sql}" for sql in writing for how in _EXPLAINED), *analyzed]
