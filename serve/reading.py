"""What endpoints ask a lake: filters that become SQL, queries that end in time, answers kept while they hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from deltalake.exceptions import DeltaError
from fastapi import Query

from lake.errors import Refused
from lake.kept import KeptLake
from lake.s3 import Unavailable
from lake.sql import condition, plain, query
from lake.tables import Lake
from serve.problems import bad_request, busy
from serve.settings import Limits

Answer = TypeVar("Answer")
Rows = list[dict[str, Any]]

_AWAY = (OSError, DeltaError, Unavailable, BotoCoreError, ClientError)
_KEPT_ANSWERS = 64
log = logging.getLogger("serve.reading")

_Text = Annotated[str | None, Query(max_length=200)]


async def asked(work: Callable[[], Answer]) -> Answer:
    """What a function that reads or writes a lake returns, on a thread. Raises Problem where the lake is away."""
    try:
        return await asyncio.to_thread(work)
    except _AWAY as error:
        log.warning("the lake does not answer: %s", error)
        raise busy(f"the lake does not answer ({type(error).__name__})", 5) from None


class Filters:
    """Which rows of `triples` and `rejections` are meant; a dependency that reads them from the query string."""

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
        conditions = [f"{name} = ${name}" for name in self.parameters]
        if action:
            self.parameters["action"] = action
            conditions.append("contains(lower(action), lower($action))")
        if where and where.strip():
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

    def page(self, limit: int | None, most: int | None = None) -> int:
        """The rows of a page, of which a request may ask for `limit`. Raises Problem where these are too many."""
        most = min(most or self.limits.rows, self.limits.rows)
        if limit and limit > most:
            raise bad_request("too-many-rows", f"limit {limit}: ask for at most {most}")
        return limit or min(100, most)

    async def rows(self, statement: str, parameters: Mapping[str, object], limit: int | None = None) -> Rows:
        """The rows of a SELECT, at most `limit` of them."""
        return (await self.result(statement, parameters, limit or self.limits.sql_rows))[1]

    async def result(
        self, statement: str, parameters: Mapping[str, object], limit: int
    ) -> tuple[list[str], Rows, bool]:
        """Columns, at most `limit` rows, and whether there are more."""
        return await self.ask(lambda: self._read(statement, parameters, limit))

    async def ask(self, work: Callable[[], Answer]) -> Answer:
        """What a function that reads the lake returns, on a thread."""
        try:
            return await asked(work)
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

    def _read(self, statement: str, parameters: Mapping[str, object], limit: int) -> tuple[list[str], Rows, bool]:
        rows: Rows = []
        with query(self.lake, statement, parameters, seconds=self.limits.sql_seconds) as result:
            names = result.schema.names
            if len(set(names)) < len(names):
                raise Refused("two columns have one name: give them other names with AS")
            for batch in result:
                rows += [{name: plain(value) for name, value in row.items()} for row in batch.to_pylist()]
                if len(rows) > limit:
                    break
        return names, rows[:limit], len(rows) > limit
