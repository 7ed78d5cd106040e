"""Queries with SQL of requests in them: what runs in a separate process, which they may hang, starve, or crash.

This module imports little, because lost processes are restarted: settings would import torch.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lake.cached_tables import CachedLake
from lake.errors import Refused, TooMuchMemory, Unavailable
from lake.isolation import limit_memory, opened
from lake.schemas import TABLES
from lake.sql import plain, query, rows_of
from lake.storage import StorageConfig
from lake.store_errors import AWAY
from lake.tables import Lake, Rows

_THREADS = 4
"""Of such a query: the stack of each counts as its memory."""
_MEMORY = 1 << 30
"""Bytes that queries of a process may take."""


class Question(NamedTuple):
    """A SELECT and its limits: `rows`, of which more are left out, `bytes` of the answer as JSON, and `seconds`."""

    statement: str
    parameters: Mapping[str, object]
    rows: int
    bytes: int
    seconds: float


class Result(NamedTuple):
    """Columns, rows, and whether there are more."""

    columns: list[str]
    rows: Rows
    truncated: bool


def read(lake: Lake, asked: Question, threads: int | None = None) -> Result:
    """Return the answer. Raises Refused as `lake.sql.query` does, and for an answer of too many bytes."""
    rows: Rows = []
    size = 0
    with query(
        lake, asked.statement, asked.parameters, seconds=asked.seconds, threads=threads, on_open=opened
    ) as result:
        names = result.schema.names
        if len(set(names)) < len(names):
            raise Refused("two columns have one name: give them other names with AS")
        for row in (row for batch in result for row in rows_of(batch)):
            rows.append(dict(zip(names, map(plain, row), strict=True)))
            # Not the bytes of Arrow: a list of booleans has sixty times as many once it is here.
            size += len(json.dumps(rows[-1], default=str))
            if size > asked.bytes:
                raise Refused(f"the answer has more than {asked.bytes:,} bytes of JSON: narrow the query")
            if len(rows) > asked.rows:
                break
    return Result(names, rows[: asked.rows], len(rows) > asked.rows)


def read_apart(uri: str, storage: StorageConfig, asked: Question) -> Result:
    """Return what `read` returns, in an isolated process, which a query ends that takes too much memory."""
    try:
        lake = _confined(uri, storage)
        _limit_cpu(asked.seconds)
        return read(lake, asked, _THREADS)
    except TooMuchMemory:
        raise MemoryError from None
    except RuntimeError as error:
        if "new thread" in str(error):
            raise MemoryError from None
        raise
    except AWAY as error:
        # Not all of these can be sent.
        raise Unavailable(f"{type(error).__name__}: {error}") from None


def prepare(uri: str, storage: StorageConfig) -> None:
    """Prepare this process for `read_apart`. Raises Unavailable if the lake does not answer."""
    _confined(uri, storage)


@cache
def _confined(uri: str, storage: StorageConfig) -> CachedLake:
    """Open the lake of this process, and drop all privileges that queries do not need.

    It can write no file, is in a folder in which nobody can, and has `_MEMORY` beyond what it takes to be open and to
    have answered. Raises Unavailable where the lake does not answer.
    """
    _leave_for_nowhere()
    lake = CachedLake(Lake(uri, storage))
    try:
        lake.versions(*TABLES)
        with query(lake, "SELECT count(*) FROM triples", threads=_THREADS) as result:
            result.read_all()
    except Refused as refused:
        # There was a lake when the service began, and nothing of the request is in this.
        raise Unavailable(str(refused)) from None
    except AWAY as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    # Of what may be written to: how much address space is only reserved differs with the number of cores.
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limit_memory(resource.RLIMIT_DATA, taken + _MEMORY)
    return lake


def _leave_for_nowhere() -> None:
    """Change to a deleted folder, where no file can be created, and forbid writing files anywhere."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)
    # Python ignores the signal, so that a write is an error of the query.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    """End this process when its next query computes for longer than its threads and Arrow's can in `seconds`.

    The parent stops it before that; this holds where the parent itself is stopped.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    threads = _THREADS + (os.cpu_count() or 1)
    limit = int(used.ru_utime + used.ru_stime + threads * (seconds + 2)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
