"""What endpoints ask a lake: filters that become SQL, queries that end in time, answers kept while they hold."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from deltalake.exceptions import DeltaError
from fastapi import Query

from lake.errors import Refused
from lake.isolation import ChildLost, limit_memory
from lake.kept import KeptLake
from lake.s3 import PATIENCE_S, Unavailable
from lake.schemas import TABLES
from lake.sql import TooMuchMemory, condition, plain, query
from lake.storage import StorageConfig
from lake.tables import Lake
from serve.problems import bad_request, busy
from serve.processes import Processes
from serve.settings import Limits

Answer = TypeVar("Answer")
Rows = list[dict[str, Any]]

_AWAY = (OSError, DeltaError, Unavailable, BotoCoreError, ClientError)
_KEPT_ANSWERS = 64
_PROCESSES = 2
"""Queries in other people's words that an ingress answers at once."""
_WAIT_S = 5.0
"""For one of these processes to be free."""
_OPENING_S = PATIENCE_S + 30
"""For tables that a process has not open yet, also while the store is away."""
_THREADS = 4
"""Of such a query: the stack of each counts as its memory."""
_MEMORY = 1 << 30
"""Bytes that queries of a process may take."""
_ADDRESSES = 1 << 40
"""Bytes of address space: what is only reserved costs nothing."""
log = logging.getLogger("serve.reading")

_Text = Annotated[str | None, Query(max_length=200)]


async def asked(work: Callable[[], Answer]) -> Answer:
    """What a function that reads or writes a lake returns, on a thread. Raises Problem where the lake is away."""
    try:
        with _or_busy():
            return await asyncio.to_thread(work)
    except Refused as refused:
        # Of nothing that the request says: there was a lake when the service began.
        raise busy(str(refused), 5) from None


@contextmanager
def _or_busy() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        log.warning("the lake does not answer: %s", error)
        raise busy(f"the lake does not answer ({type(error).__name__})", 5) from None


class Filters:
    """Which rows of `triples` and `rejections` are meant; a dependency that reads them from the query string.

    `sql` is the condition; `is_foreign` says whether words of the request are in it, see `Reading.rows`.
    """

    def __init__(
        self,
        dataset: _Text = None,
        labeler: _Text = None,
        run: _Text = None,
        video: Annotated[str | None, Query(max_length=64)] = None,
        action: Annotated[str | None, Query(max_length=200, description="text that the action contains")] = None,
        where: Annotated[
            str | None,
            Query(max_length=5000, description="a condition in SQL", examples=["motion > 0.05 AND split = 'train'"]),
        ] = None,
    ) -> None:
        equal = {"dataset": dataset, "labeler_id": labeler, "run_id": run, "video_id": video}
        self.parameters: dict[str, object] = {name: value for name, value in equal.items() if value}
        self.is_foreign = bool(where and where.strip())
        conditions = [f"{name} = ${name}" for name in self.parameters]
        if action:
            self.parameters["action"] = action
            conditions.append("contains(lower(action), lower($action))")
        if where and self.is_foreign:
            conditions.append(checked(where))
        self.sql = " AND ".join(conditions) or "true"


def checked(where: str) -> str:
    """A condition that a request brings. Raises Problem where it is none."""
    try:
        return condition(where)
    except Refused as refused:
        raise bad_request("sql", str(refused)) from None


class Reading:
    """A lake, open for as long as the service runs. Its methods raise Problem for SQL that is refused."""

    def __init__(self, lake: Lake, limits: Limits) -> None:
        self.lake = KeptLake(lake)
        self.limits = limits
        self._answers: dict[tuple[object, ...], Any] = {}
        self._processes = Processes(_PROCESSES, limits.sql_seconds + _OPENING_S, _ADDRESSES, _WAIT_S)

    def page(self, limit: int | None, most: int | None = None) -> int:
        """The rows of a page, of which a request may ask for `limit`. Raises Problem where these are too many."""
        most = min(most or self.limits.rows, self.limits.rows)
        if limit and limit > most:
            raise bad_request("too-many-rows", f"limit {limit}: ask for at most {most}")
        return limit or min(100, most)

    async def rows(
        self, statement: str, parameters: Mapping[str, object], limit: int | None = None, *, foreign: bool = False
    ) -> Rows:
        """The rows of a SELECT, at most `limit` of them.

        A `foreign` one, with words of a request in it, may take any amount of memory: it gets a process of its own.
        """
        return (await self.result(statement, parameters, limit or self.limits.sql_rows, foreign=foreign))[1]

    async def result(
        self, statement: str, parameters: Mapping[str, object], limit: int, *, foreign: bool
    ) -> tuple[list[str], Rows, bool]:
        """Columns, at most `limit` rows, and whether there are more."""
        if not foreign:
            return await self.ask(lambda: _read(self.lake, statement, parameters, limit, self.limits))
        given = (self.lake.uri, self.lake.storage, statement, dict(parameters), limit, self.limits)
        try:
            with _or_busy():
                return await self._processes.call(_read_apart, *given)
        except Refused as refused:
            raise bad_request("sql", str(refused)) from None
        except TimeoutError:
            raise busy("too many queries at once", 5) from None
        except ChildLost as lost:
            if "hanging" in str(lost):
                raise busy("the query does not end", 5) from None
            raise bad_request("sql", "the query needs more memory than there is for it: ask for less") from None

    async def ask(self, work: Callable[[], Answer]) -> Answer:
        """What a function that reads the lake returns, on a thread."""
        try:
            with _or_busy():
                return await asyncio.to_thread(work)
        except Refused as refused:
            raise bad_request("sql", str(refused)) from None

    async def unchanged(
        self, key: tuple[object, ...], tables: tuple[str, ...], work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """What `work` awaits, or what it gave when these tables had the versions that they have now."""
        versions = await self.ask(lambda: self.lake.versions(*tables))
        if (*key, versions) not in self._answers:
            answer = await work()
            while len(self._answers) >= _KEPT_ANSWERS:
                self._answers.pop(next(iter(self._answers)))
            self._answers[(*key, versions)] = answer
        kept: Answer = self._answers[(*key, versions)]
        return kept

    async def prepare(self) -> None:
        """Have a process for queries of others up, which takes seconds, before anybody asks."""
        await self.rows("SELECT 1", {}, foreign=True)

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


def _read(
    lake: Lake,
    statement: str,
    parameters: Mapping[str, object],
    limit: int,
    limits: Limits,
    threads: int | None = None,
) -> tuple[list[str], Rows, bool]:
    rows: Rows = []
    size = 0
    with query(lake, statement, parameters, seconds=limits.sql_seconds, threads=threads) as result:
        names = result.schema.names
        if len(set(names)) < len(names):
            raise Refused("two columns have one name: give them other names with AS")
        for row in (row for batch in result for row in batch.to_pylist()):
            rows.append({name: plain(value) for name, value in row.items()})
            # Not the bytes of Arrow: a list of booleans has sixty times as many once it is here.
            size += len(json.dumps(rows[-1], default=str))
            if size > limits.sql_bytes:
                raise Refused(f"the answer has more than {limits.sql_bytes:,} bytes of JSON: ask for less")
            if len(rows) > limit:
                break
    return names, rows[:limit], len(rows) > limit


def _read_apart(
    uri: str, storage: StorageConfig, statement: str, parameters: Mapping[str, object], limit: int, limits: Limits
) -> tuple[list[str], Rows, bool]:
    """What `_read` returns. Runs in a process of its own, which a query that takes too much memory ends."""
    try:
        return _read(_open(uri, storage), statement, parameters, limit, limits, _THREADS)
    except TooMuchMemory:
        raise MemoryError from None
    except RuntimeError as error:
        if "new thread" in str(error):
            raise MemoryError from None
        raise
    except _AWAY as error:
        # Not all of these can be sent.
        raise Unavailable(f"{type(error).__name__}: {error}") from None


@cache
def _open(uri: str, storage: StorageConfig) -> KeptLake:
    """The lake of this process, whose queries share `_MEMORY` beyond what it takes to be open and to have answered."""
    lake = KeptLake(Lake(uri, storage))
    try:
        lake.versions(*TABLES)
        with query(lake, "SELECT count(*) FROM triples", threads=_THREADS) as result:
            result.read_all()
    except Refused as refused:
        # There was a lake when the service began, and nothing of the request is in this.
        raise Unavailable(str(refused)) from None
    # Of what may be written to: how much address space is only reserved differs with the number of cores.
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limit_memory(resource.RLIMIT_DATA, taken + _MEMORY)
    return lake
