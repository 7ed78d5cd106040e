"""`/v1/triples`: what was accepted, page by page and with its images."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Depends, Path, Query, Response

from lake.cached_tables import CachedLake
from lake.sql import plain
from serve.auth import Guard
from serve.lake_schemas import Decided, PairColumns, TriplesPage
from serve.problems import Problem, responses
from serve.queries import Filters, Page, Reading
from serve.row_models import column_names

_COLUMNS = column_names(PairColumns)
_IMAGES = {"obs.jpg": "obs", "next_obs.jpg": "next_obs"}
_Id = Annotated[UUID, Path(description="a triple id")]
_ROWS_WITH_IMAGES = 100
"""Two images of some 20 kB each, as base64."""

NEWEST = "-coalesce(epoch_us(labeled_at), 0)"
# What each order sorts by, ascending, before the id.
_ORDERS = {"id": "triple_id", "newest": NEWEST, "unsure": "coalesce(confidence, 'inf'::DOUBLE)"}


def router(guard: Guard, reading: Reading) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429, 503)

    @api.get("/v1/triples", summary="Triples, a page at a time", responses=errors)
    async def triples(
        filters: Annotated[Filters, Depends()],
        asked: Annotated[Page, Depends()],
        min_confidence: Annotated[
            float | None, Query(allow_inf_nan=False, description="least confidence, a log-probability per token")
        ] = None,
        order: Annotated[
            Literal["id", "newest", "unsure"], Query(description="unsure: the least confident ones first")
        ] = "id",
        images: Annotated[bool, Query(description="also the images; 100 rows at most")] = False,
    ) -> TriplesPage:
        limit = reading.page(asked.limit, _ROWS_WITH_IMAGES if images else None)
        if min_confidence is not None:
            filters.sql += " AND confidence >= $min_confidence"
            filters.parameters["min_confidence"] = min_confidence
        page, last = await page_of(reading, "triples", filters, asked.after, limit, _ORDERS[order], images=images)
        return TriplesPage(triples=page, next=last)

    @api.get("/v1/triples/{triple_id}", summary="One triple", responses=errors | responses(404))
    async def triple(triple_id: _Id) -> Decided:
        rows = await reading.ask(lambda: decided(reading.lake, "triples", pc.field("triple_id") == str(triple_id)))
        if not rows:
            raise _missing(triple_id)
        return rows[0]

    @api.get(
        "/v1/triples/{triple_id}/{image}",
        summary="obs.jpg or next_obs.jpg of a triple",
        responses=errors | responses(404) | {200: {"content": {"image/jpeg": {}}}},
        response_class=Response,
    )
    async def image(triple_id: _Id, image: Annotated[str, Path(description="obs.jpg or next_obs.jpg")]) -> Response:
        if image not in _IMAGES:
            raise _missing(triple_id)
        where = pc.field("triple_id") == str(triple_id)
        found = await reading.ask(lambda: reading.lake.find("triples", [_IMAGES[image]], where))
        if not found.num_rows:
            raise _missing(triple_id)
        # A triple never changes; it can be forgotten.
        content = found[_IMAGES[image]][0].as_py()
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return api


async def page_of(
    reading: Reading, table: str, filters: Filters, after: str | None, limit: int, key: str, *, images: bool = False
) -> tuple[list[Decided], str | None]:
    """Return the rows after an id, in the order of `key` and id, and the id to ask for the next page with."""
    given = filters.parameters | {"limit": limit + 1}
    condition = filters.sql
    if after is not None:
        given["after"] = after
        condition += f" AND ({key}, triple_id) > (SELECT ({key}, triple_id) FROM {table} WHERE triple_id = $after)"
        if key == "triple_id":
            condition = f"{filters.sql} AND triple_id > $after"
    # Which rows, by as few columns as that takes; then all columns of these.
    statement = f"SELECT triple_id FROM {table} WHERE {condition} ORDER BY {key}, triple_id LIMIT $limit"
    found = await reading.rows(statement, given, limit + 1, asker=filters.asker)
    ids = [row["triple_id"] for row in found]
    where = pc.field("triple_id").isin(pa.array(ids[:limit], pa.string()))
    rows = {row.triple_id: row for row in await reading.ask(lambda: decided(reading.lake, table, where, images=images))}
    # One that was forgotten a moment ago is in no table any more.
    page = [rows[id_] for id_ in ids[:limit] if id_ in rows]
    return page, ids[limit - 1] if len(ids) > limit else None


def decided(lake: CachedLake, table: str, where: pc.Expression, *, images: bool = False) -> list[Decided]:
    """Return the few rows of `triples` or `rejections` that satisfy a condition, in no order."""
    is_rejected = table == "rejections"
    columns = [*_COLUMNS, *(["reasons"] if is_rejected else []), *(_IMAGES.values() if images else [])]
    # As JSON has them: bytes as base64, and no NaN.
    rows = [{name: plain(value) for name, value in row.items()} for row in lake.find(table, columns, where).to_pylist()]
    verdict = "rejected" if is_rejected else "accepted"
    return [Decided(**row | {"verdict": verdict, "reasons": row.get("reasons") or []}) for row in rows]


def _missing(triple_id: UUID) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "not-found", f"there is no triple {triple_id} in this lake, or no such image")
