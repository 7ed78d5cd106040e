"""`/v1/triples`, `/v1/sql`, `/v1/labelers`: what is in the lake. Nothing here writes."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

import pyarrow.compute as pc
from fastapi import APIRouter, Depends, Query, Response

from lake.errors import Refused
from lake.sql import plain, query
from serve.problems import Problem, bad_request, responses
from serve.schemas import LabelerOut, SqlIn, SqlOut, Triple, TriplesOut
from serve.services import Services

_COLUMNS = (
    "triple_id, labeler_id, policy_id, video_id, uri, dataset, split, obs_time_s, next_time_s, action, motion, "
    "confidence, direction, copy, labeled_at"
)
_PAGE = f"""
SELECT {_COLUMNS} FROM triples
WHERE ($after IS NULL OR triple_id > $after) AND ($dataset IS NULL OR dataset = $dataset)
    AND ($labeler IS NULL OR labeler_id = $labeler) AND ($video IS NULL OR video_id = $video)
    AND ($action IS NULL OR contains(lower(action), lower($action)))
    AND ($min_confidence IS NULL OR confidence >= $min_confidence)
ORDER BY triple_id LIMIT $limit
"""
_LABELERS = """
SELECT labeler_id, any_value(policy_id) AS policy_id, count(*) FILTER (accepted) AS triples,
    count(*) FILTER (NOT accepted) AS rejections
FROM (SELECT labeler_id, policy_id, true AS accepted FROM triples
    UNION ALL SELECT labeler_id, policy_id, false FROM rejections)
GROUP BY labeler_id ORDER BY labeler_id
"""
_IMAGES = {"obs.jpg": "obs", "next_obs.jpg": "next_obs"}


def router(services: Services) -> APIRouter:
    """The endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(services.guard.require("read"))])
    errors = responses(401, 403, 422, 429)

    @api.get("/v1/triples", summary="Triples, a page at a time", responses=errors)
    async def triples(
        after: Annotated[UUID | None, Query(description="`next` of the page before")] = None,
        limit: Annotated[int | None, Query(ge=1, description="rows of the page")] = None,
        dataset: Annotated[str | None, Query(max_length=200)] = None,
        labeler: Annotated[str | None, Query(max_length=200)] = None,
        video: Annotated[str | None, Query(max_length=64)] = None,
        action: Annotated[str | None, Query(max_length=200, description="text that the action contains")] = None,
        min_confidence: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    ) -> TriplesOut:
        limit = limit or min(100, services.limits.rows)
        if limit > services.limits.rows:
            raise bad_request("too-many-rows", f"limit {limit}: ask for at most {services.limits.rows}")
        given: dict[str, object] = {"after": str(after) if after else None, "limit": limit + 1, "dataset": dataset}
        given |= {"labeler": labeler, "video": video, "action": action, "min_confidence": min_confidence}
        _, rows, _ = await _select(services, _PAGE, given, limit + 1)
        page = [Triple(**row) for row in rows[:limit]]
        return TriplesOut(triples=page, next=page[-1].triple_id if len(rows) > limit else None)

    @api.get("/v1/triples/{triple_id}", summary="One triple", responses=errors | responses(404))
    async def triple(triple_id: UUID) -> Triple:
        statement = f"SELECT {_COLUMNS} FROM triples WHERE triple_id = $triple_id LIMIT 1"
        _, rows, _ = await _select(services, statement, {"triple_id": str(triple_id)}, 1)
        if not rows:
            raise _missing(triple_id)
        return Triple(**rows[0])

    @api.get(
        "/v1/triples/{triple_id}/{image}",
        summary="obs.jpg or next_obs.jpg of a triple",
        responses=errors | responses(404) | {200: {"content": {"image/jpeg": {}}}},
        response_class=Response,
    )
    async def image(triple_id: UUID, image: str) -> Response:
        if image not in _IMAGES:
            raise _missing(triple_id)
        found = await asyncio.to_thread(_image, services, str(triple_id), _IMAGES[image])
        if found is None:
            raise _missing(triple_id)
        # A triple never changes; it can be forgotten.
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @api.post("/v1/sql", summary="One read-only SELECT", responses=errors | responses(400, 413, 415))
    async def sql(asked: SqlIn) -> SqlOut:
        limit = services.limits.sql_rows
        columns, rows, truncated = await _select(services, asked.sql, {}, limit)
        return SqlOut(columns=columns, rows=[list(row.values()) for row in rows], truncated=truncated)

    @api.get("/v1/labelers", summary="Who has labelled in this lake", responses=errors)
    async def labelers() -> list[LabelerOut]:
        _, rows, _ = await _select(services, _LABELERS, {}, services.limits.sql_rows)
        return [LabelerOut(**row) for row in rows]

    return api


async def _select(
    services: Services, statement: str, parameters: dict[str, object], limit: int
) -> tuple[list[str], list[dict[str, Any]], bool]:
    """Columns, at most `limit` rows, and whether there are more. Raises Problem for SQL that is refused."""
    try:
        return await asyncio.to_thread(_rows, services, statement, parameters, limit)
    except Refused as refused:
        raise bad_request("sql", str(refused)) from None


def _rows(
    services: Services, statement: str, parameters: dict[str, object], limit: int
) -> tuple[list[str], list[dict[str, Any]], bool]:
    rows: list[dict[str, Any]] = []
    with query(services.lake, statement, parameters, seconds=services.limits.sql_seconds) as result:
        names = result.schema.names
        if len(set(names)) < len(names):
            raise Refused("two columns have one name: give them other names with AS")
        for batch in result:
            rows += [{name: plain(value) for name, value in row.items()} for row in batch.to_pylist()]
            if len(rows) > limit:
                break
    return names, rows[:limit], len(rows) > limit


def _image(services: Services, triple_id: str, column: str) -> bytes | None:
    table = services.lake.read("triples", [column], pc.field("triple_id") == triple_id)
    content: bytes | None = table[column][0].as_py() if table.num_rows else None
    return content


def _missing(triple_id: UUID) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "not-found", f"there is no triple {triple_id} in this lake, or no such image")
