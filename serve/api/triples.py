"""`/v1/triples`: what was accepted, page by page and with its images."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response

from serve.api.label import encoded
from serve.guard import Guard
from serve.lake_schemas import Decided, TriplesPage
from serve.problems import Problem, responses
from serve.reading import Filters, Reading

COLUMNS = (
    "triple_id, run_id, labeler_id, policy_id, video_id, uri, dataset, split, obs_time_s, next_time_s, action, motion, "
    "camera_motion, confidence, direction, copy, text, labeled_at"
)
_IMAGES = {"obs.jpg": 0, "next_obs.jpg": 1}
_ROWS_WITH_IMAGES = 100
"""Two images of some 20 kB each, as base64."""

NEWEST = "-coalesce(epoch_us(labeled_at), 0)"
# What each order sorts by, ascending, before the id.
_ORDERS = {"id": "triple_id", "newest": NEWEST, "unsure": "coalesce(confidence, 'inf'::DOUBLE)"}


def router(guard: Guard, reading: Reading) -> APIRouter:
    """The endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429)

    @api.get("/v1/triples", summary="Triples, a page at a time", responses=errors)
    async def triples(
        filters: Annotated[Filters, Depends()],
        after: Annotated[UUID | None, Query(description="`next` of the page before")] = None,
        limit: Annotated[int | None, Query(ge=1, description="rows of the page")] = None,
        min_confidence: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        order: Annotated[
            Literal["id", "newest", "unsure"], Query(description="unsure: the least confident ones first")
        ] = "id",
        images: Annotated[bool, Query(description="also the images; 100 rows at most")] = False,
    ) -> TriplesPage:
        limit = reading.page(limit, _ROWS_WITH_IMAGES if images else None)
        if min_confidence is not None:
            filters.sql += " AND confidence >= $min_confidence"
            filters.parameters["min_confidence"] = min_confidence
        page, last = await page_of(reading, "triples", filters, after, limit, _ORDERS[order])
        if images:
            found = await reading.ask(lambda: reading.lake.pictures([row["triple_id"] for row in page]))
            for row in page:
                # One that was forgotten a moment ago has none.
                row["obs"], row["next_obs"] = map(encoded, found.get(row["triple_id"], (b"", b"")))
        return TriplesPage(triples=[Decided(**row) for row in page], next=last)

    @api.get("/v1/triples/{triple_id}", summary="One triple", responses=errors | responses(404))
    async def triple(triple_id: UUID) -> Decided:
        statement = f"SELECT {COLUMNS} FROM triples WHERE triple_id = $triple_id LIMIT 1"
        rows = await reading.rows(statement, {"triple_id": str(triple_id)}, 1)
        if not rows:
            raise _missing(triple_id)
        return Decided(**rows[0], verdict="accepted", reasons=[])

    @api.get(
        "/v1/triples/{triple_id}/{image}",
        summary="obs.jpg or next_obs.jpg of a triple",
        responses=errors | responses(404) | {200: {"content": {"image/jpeg": {}}}},
        response_class=Response,
    )
    async def image(triple_id: UUID, image: str) -> Response:
        if image not in _IMAGES:
            raise _missing(triple_id)
        found = await reading.ask(lambda: reading.lake.pictures([str(triple_id)]))
        if str(triple_id) not in found:
            raise _missing(triple_id)
        # A triple never changes; it can be forgotten.
        content = found[str(triple_id)][_IMAGES[image]]
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return api


async def page_of(
    reading: Reading, table: str, filters: Filters, after: UUID | None, limit: int, key: str
) -> tuple[list[dict[str, Any]], str | None]:
    """Rows after one, in the order of `key` and id, as `Decided`; and the id to go on after."""
    given = filters.parameters | {"limit": limit + 1}
    condition = filters.sql
    if after is not None:
        given["after"] = str(after)
        condition += f" AND ({key}, triple_id) > (SELECT ({key}, triple_id) FROM {table} WHERE triple_id = $after)"
        if key == "triple_id":
            condition = f"{filters.sql} AND triple_id > $after"
    reasons = "reasons" if table == "rejections" else "[]::VARCHAR[] AS reasons"
    statement = f"SELECT {COLUMNS}, {reasons} FROM {table} WHERE {condition} ORDER BY {key}, triple_id LIMIT $limit"
    rows = await reading.rows(statement, given, limit + 1)
    verdict = "rejected" if table == "rejections" else "accepted"
    page = [row | {"verdict": verdict, "reasons": row["reasons"] or []} for row in rows[:limit]]
    return page, page[-1]["triple_id"] if len(rows) > limit else None


def _missing(triple_id: UUID) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "not-found", f"there is no triple {triple_id} in this lake, or no such image")
