"""Models of rows of the tables, made of the columns that `lake.schemas` declares."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field, create_model

from lake.schemas import BOOL, FLOAT, INT, SMALL_INT, STRING, STRINGS, TIME, spec

_TYPES: dict[pa.DataType, Any] = {
    STRING: str, INT: int, SMALL_INT: int, FLOAT: float, BOOL: bool, TIME: dt.datetime, STRINGS: list[str],
}  # fmt: skip


def row_model(table: str, without: Collection[str], *, nullable: bool = False) -> type[BaseModel]:
    """Make a model of all columns of a table but some. `nullable`: every column but the first may be absent."""
    fields: dict[str, Any] = {}
    for number, column in enumerate(column for column in spec(table) if column.name not in without):
        type_, may_lack = _TYPES[column.type], nullable and number > 0
        # A column such as `copy` is a method of every model, so that its field has another name.
        fields[column.name + "_" * hasattr(BaseModel, column.name)] = (
            type_ | None if column.nullable or may_lack else type_,
            Field(None if may_lack else ..., alias=column.name, description=column.description),
        )
    return create_model(f"_{table.capitalize()}", **fields)


def column_names(model: type[BaseModel]) -> list[str]:
    """Return the columns of a model that `row_model` made."""
    return [field.alias or name for name, field in model.model_fields.items()]
