"""`/v1/rejections`, `/v1/failures`: what is not in `triples`, and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from serve.api.triples import NEWEST, page_of
from serve.auth import Guard
from serve.lake_schemas import FailureColumns, FailureOut, FailuresPage, RejectionsPage
from serve.problems import responses
from serve.queries import AFTER, Filters, LabelerId, Limit, Page, Reading
from serve.row_models import column_names

FAILURE = ", ".join(column_names(FailureColumns))
# Failures have no id: when, and a hash of all that tells two of them apart.
_KEY = (
    "printf('%020d', coalesce(epoch_us(failed_at), 0)) || '-' || md5(concat_ws('|', "
    "video_id, uri, labeler_id, run_id, scope, triple_id, start_pts, end_pts, stage, message, attempt))"
)
_FAILURES = f"""
SELECT * FROM (SELECT {FAILURE}, {_KEY} AS key FROM failures)
WHERE ($after IS NULL OR key < $after) AND ($labeler IS NULL OR labeler_id = $labeler)
    AND ($stage IS NULL OR stage = $stage)
ORDER BY key DESC LIMIT $limit
"""


def router(guard: Guard, reading: Reading) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429, 503)

    @api.get("/v1/rejections", summary="Rejected pairs, newest first", responses=errors)
    async def rejections(
        filters: Annotated[Filters, Depends()],
        asked: Annotated[Page, Depends()],
        reason: Annotated[str | None, Query(max_length=200, description="a verifier that rejects it")] = None,
    ) -> RejectionsPage:
        if reason:
            filters.sql += " AND list_contains(reasons, $reason)"
            filters.parameters["reason"] = reason
        page, last = await page_of(reading, "rejections", filters, asked.after, reading.page(asked.limit), NEWEST)
        return RejectionsPage(rejections=page, next=last)

    @api.get("/v1/failures", summary="Attempts that failed, newest first", responses=errors)
    async def failures(
        after: Annotated[str | None, Query(pattern="^[0-9]{20}-[0-9a-f]{32}$", description=AFTER)] = None,
        limit: Limit = None,
        labeler: LabelerId = None,
        stage: Annotated[str | None, Query(max_length=200, description="a stage, such as read or decode")] = None,
    ) -> FailuresPage:
        limit = reading.page(limit)
        given = {"after": after, "labeler": labeler, "stage": stage, "limit": limit + 1}
        rows = await reading.rows(_FAILURES, given, limit + 1)
        last = rows[limit - 1]["key"] if len(rows) > limit else None
        return FailuresPage(failures=[FailureOut(**row) for row in rows[:limit]], next=last)

    return api
