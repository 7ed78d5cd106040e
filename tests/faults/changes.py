"""All ways in which a command changes a store: what the tests of this folder kill, pause, lose and delay."""

from __future__ import annotations

from typing import Any

from deltalake import DeltaTable
from deltalake.table import TableAlterer, TableOptimizer

from lake import writer
from lake.storage import StorageConfig

CHANGES: tuple[tuple[Any, str], ...] = (
    (DeltaTable, "create"),
    (DeltaTable, "create_write_transaction"),
    (DeltaTable, "create_checkpoint"),
    (TableAlterer, "add_columns"),
    (TableAlterer, "set_table_properties"),
    (TableOptimizer, "compact"),
    (TableOptimizer, "z_order"),
    (StorageConfig, "put"),
    (StorageConfig, "put_new"),
    (StorageConfig, "put_folder"),
    (StorageConfig, "delete"),
    (writer, "write_deltalake"),
)
"""Owners and names of what makes them."""
