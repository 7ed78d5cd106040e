"""Queries of endpoints: filters that become SQL, time limits, and answers cached until the tables change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Query, Request

from lake.cached_tables import CachedLake
from lake.errors import ChildLost, Refused
from lake.isolation import Isolated
from lake.s3 import PATIENCE_S
from lake.sql import MEMORY, condition, too_long
from lake.store_errors import AWAY
from lake.tables import Lake, Rows
from serve.isolated_pool import NoneFree, Processes
from serve.keys import Key
from serve.limits import Limits
from serve.problems import Problem, bad_request, busy
from serve.query_worker import Question, Result, prepare, read, read_apart

Answer = TypeVar("Answer")
Row = TypeVar("Row")

_KEPT_ANSWERS = 64
_PROCESSES = 2
"""Processes of an ingress for queries with SQL of requests in them."""
_WAIT_S = 5.0
"""How long a query waits for a free process."""
_LATE_S = 1.0
"""If DuckDB has not stopped a query this long after its time limit, its process is killed."""
_ADDRESSES = 1 << 40
"""Bytes of address space: what is only reserved costs nothing."""
log = logging.getLogger("serve.queries")

_RunId = Annotated[str | None, Query(max_length=200, description="a run id")]
DatasetName = Annotated[str | None, Query(max_length=200, description="a data set")]
LabelerId = Annotated[str | None, Query(max_length=200, description="a labeler id")]
AFTER = "`next` of the page before"
Limit = Annotated[int | None, Query(ge=1, description="rows of the page")]


class Page:
    """Which rows of a listing by `triple_id` are asked for; a dependency that reads it from the query string."""

    def __init__(self, after: Annotated[UUID | None, Query(description=AFTER)] = None, limit: Limit = None) -> None:
        self.after = str(after) if after else None
        self.limit = limit


def page_after(
    rows: Sequence[Row], id_of: Callable[[Row], str], after: str | None, limit: int
) -> tuple[list[Row], str | None]:
    """Return the rows after the one of an id, and the id to ask for the next page with; None for the last one."""
    if after is not None:
        place = next((place for place, row in enumerate(rows) if id_of(row) == after), len(rows))
        rows = rows[place + 1 :]
    return list(rows[:limit]), id_of(rows[limit - 1]) if len(rows) > limit else None


async def asked(work: Callable[[], Answer]) -> Answer:
    """Call a function that reads or writes a lake on a thread. Raises Problem if the lake is unavailable."""
    # Refused is not the fault of the request: the lake existed when the service started.
    with _problems(partial(busy, retry_after_s=5)):
        return await asyncio.to_thread(work)


_bad_sql = partial(bad_request, "sql")


@contextmanager
def _problems(refused: Callable[[str], Problem] = _bad_sql) -> Iterator[None]:
    """Raise errors of a lake as problems: busy if it is unavailable, and Refused as `refused` makes it."""
    try:
        yield
    except Refused as error:
        raise refused(str(error)) from None
    except AWAY as error:
        log.warning("the lake does not answer: %s", error)
        raise busy(f"the lake does not answer ({type(error).__name__})", 5) from None


class Filters:
    """A filter on rows of `triples` and `rejections`; a dependency that reads it from the query string.

    `sql` is the condition. If it has SQL of the request in it, `asker` is who sent it; see `Reading.rows`.
    """

    def __init__(
        self,
        request: Request,
        dataset: DatasetName = None,
        labeler: LabelerId = None,
        run: _RunId = None,
        video: Annotated[str | None, Query(max_length=64, description="a video id")] = None,
        action: Annotated[str | None, Query(max_length=200, description="text that the action contains")] = None,
        where: Annotated[
            str | None,
            Query(max_length=5000, description="a condition in SQL", examples=["motion > 0.05 AND split = 'train'"]),
        ] = None,
    ) -> None:
        equal = {"dataset": dataset, "labeler_id": labeler, "run_id": run, "video_id": video}
        self.parameters: dict[str, object] = {name: value for name, value in equal.items() if value}
        self.asker: str | None = None
        conditions = [f"{name} = ${name}" for name in self.parameters]
        if action:
            self.parameters["action"] = action
            conditions.append("contains(lower(action), lower($action))")
        if where and where.strip():
            self.asker = asker(request)
            conditions.append(checked(where))
        self.sql = " AND ".join(conditions) or "true"


def asker(request: Request) -> str:
    """Return who sent a request: the id of its key, or an empty string if no key is needed."""
    key: Key | None = getattr(request.state, "key", None)
    return key.key_id if key else ""


def checked(where: str) -> str:
    """Return a condition from a request. Raises Problem if it is not valid."""
    with _problems():
        return condition(where)


class Reading:
    """A lake that stays open while the service runs. The methods raise Problem for SQL that is refused."""

    def __init__(self, lake: Lake, limits: Limits) -> None:
        self.lake = CachedLake(lake)
        self.limits = limits
        self._answers: dict[tuple[object, ...], Any] = {}
        processes = [_process(lake, limits) for _ in range(_PROCESSES)]
        # A key leaves one to the others.
        self._processes = Processes(processes, wait_s=_WAIT_S, share=_PROCESSES - 1, kills=True)

    def page(self, limit: int | None, most: int | None = None) -> int:
        """Return the number of rows of a page for a requested `limit`. Raises Problem if that is too many."""
        most = min(most or self.limits.rows, self.limits.rows)
        if limit and limit > most:
            raise bad_request("too-many-rows", f"limit {limit}: ask for at most {most}")
        return limit or min(100, most)

    async def rows(
        self, statement: str, parameters: Mapping[str, object], limit: int | None = None, *, asker: str | None = None
    ) -> Rows:
        """Return the rows of a SELECT, at most `limit` of them.

        With `asker`, the statement has SQL of a request in it, which may take any amount of time and memory: it runs in
        a separate process.
        """
        return (await self.result(statement, parameters, limit or self.limits.sql_rows, asker=asker)).rows

    async def result(
        self, statement: str, parameters: Mapping[str, object], limit: int, *, asker: str | None
    ) -> Result:
        """Return as `rows`, with the columns and whether there are more rows."""
        asked = Question(statement, dict(parameters), limit, self.limits.sql_bytes, self.limits.sql_seconds)
        if asker is None:
            return await self.ask(lambda: read(self.lake, asked))
        try:
            with _problems():
                return await self._processes.call(read_apart, self.lake.uri, self.lake.storage, asked, asker=asker)
        except NoneFree:
            raise busy("too many queries at once", _WAIT_S) from None
        except ChildLost as lost:
            raise self._lost(lost) from None

    def _lost(self, lost: ChildLost) -> Problem:
        """Return the answer to a query that ended its process. It is final, because the query would do so again."""
        log.warning("a query has ended its process: %s", lost)
        if lost.ending == "not open":
            return busy("the lake does not answer", _WAIT_S)
        details = {
            "hung": too_long(self.limits.sql_seconds),
            "memory": MEMORY,
            "died": "the query ended the process that it ran in: change the query",
        }
        return bad_request("sql", details[lost.ending])

    async def ask(self, work: Callable[[], Answer]) -> Answer:
        """Call a function that reads the lake on a thread."""
        with _problems():
            return await asyncio.to_thread(work)

    async def unchanged(
        self, key: tuple[object, ...], tables: tuple[str, ...], work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Return the result of `work`, cached until one of these tables has a new version."""
        versions = await self.ask(lambda: self.lake.versions(*tables))
        if (*key, versions) not in self._answers:
            answer = await work()
            while len(self._answers) >= _KEPT_ANSWERS:
                self._answers.pop(next(iter(self._answers)))
            self._answers[(*key, versions)] = answer
        kept: Answer = self._answers[(*key, versions)]
        return kept

    async def prepare(self) -> None:
        """Start the query processes, which takes seconds, before the first request."""
        await self._processes.start()

    def close(self) -> None:
        """Stop the query processes."""
        self._processes.close()


def _process(lake: Lake, limits: Limits) -> Isolated:
    return Isolated(
        limits.sql_seconds + _LATE_S,
        _ADDRESSES,
        # What hangs or starves does it every time.
        attempts=1,
        opening_s=limits.deadline_s,
        first=partial(prepare, lake.uri, lake.storage),
        first_s=PATIENCE_S + 30,
    )
