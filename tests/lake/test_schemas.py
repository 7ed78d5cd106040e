"""Promises of the column spec to what is made of it."""

from __future__ import annotations

from dataclasses import fields

from lake.failures import Failure
from lake.schemas import SPEC, TABLES


def test_a_failure_has_the_columns_of_its_table() -> None:
    assert {field.name for field in fields(Failure)} == set(TABLES["failures"].names)
    known = Failure(scope="span", stage="decode", error_type="E", message="m", start_pts=0).to_row()
    assert known.keys() == {"scope", "stage", "error_type", "message", "transient", "start_pts", "failed_at"}


def test_no_table_has_a_column_twice_and_every_column_is_described() -> None:
    for table in SPEC:
        names = [column.name for column in table]
        assert len(set(names)) == len(names), table.name
        assert all(column.description.endswith((".", "?")) for column in table), table.name
