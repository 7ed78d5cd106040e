"""`/v1/sql`, `/v1/labelers`: SQL of clients, read only, and the labelers of a lake."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from serve.auth import Guard
from serve.problems import responses
from serve.queries import Reading, asker
from serve.schemas import LabelerOut, SqlIn, SqlOut

_LABELERS = """
SELECT labeler_id, any_value(policy_id) AS policy_id, count(*) FILTER (accepted) AS triples,
    count(*) FILTER (NOT accepted) AS rejections
FROM (SELECT labeler_id, policy_id, true AS accepted FROM triples
    UNION ALL SELECT labeler_id, policy_id, false FROM rejections)
GROUP BY labeler_id ORDER BY labeler_id
"""


def router(guard: Guard, reading: Reading) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429, 503)

    @api.post("/v1/sql", summary="One read-only SELECT", responses=errors | responses(400, 413, 415))
    async def sql(request: Request, asked: SqlIn) -> SqlOut:
        found = await reading.result(asked.sql, {}, reading.limits.sql_rows, asker=asker(request))
        rows = [list(row.values()) for row in found.rows]
        return SqlOut(columns=found.columns, rows=rows, truncated=found.truncated)

    @api.get("/v1/labelers", summary="Who has labeled in this lake", responses=errors)
    async def labelers() -> list[LabelerOut]:
        return [LabelerOut(**row) for row in await reading.rows(_LABELERS, {})]

    return api
