"""`/v1/videos`: the videos of the lake, and the pairs of one."""

from __future__ import annotations

import math
from fractions import Fraction
from http import HTTPStatus
from typing import Annotated, Any

import pyarrow.compute as pc
from fastapi import APIRouter, Depends, Path, Query

from lake.cached_tables import CachedLake
from lake.schemas import DECISIONS
from serve.api.rejections import FAILURE
from serve.api.triples import decided
from serve.auth import Guard
from serve.lake_schemas import Decided, FailureInTime, PairsPage, VideoColumns, VideoDetail, VideoOut, VideosPage
from serve.problems import Problem, responses
from serve.queries import AFTER, DatasetName, Limit, Page, Reading, page_after
from serve.row_models import column_names

_COUNTS = """
    (SELECT count(*) FROM triples WHERE triples.video_id = page.video_id) AS accepted,
    (SELECT count(*) FROM rejections WHERE rejections.video_id = page.video_id) AS rejected
"""
_PAGE = f"""
WITH page AS (
    SELECT {", ".join(column_names(VideoColumns))} FROM videos
    WHERE ($dataset IS NULL OR dataset = $dataset) AND ($uri IS NULL OR contains(lower(uri), lower($uri)))
        AND ($after IS NULL OR (uri, video_id) > (SELECT (uri, video_id) FROM videos WHERE video_id = $after))
    ORDER BY uri, video_id LIMIT $limit)
SELECT *, {_COUNTS} FROM page ORDER BY uri, video_id
"""
_ONE = """
SELECT *, (SELECT list(DISTINCT labeler_id ORDER BY labeler_id) FROM progress WHERE video_id = $video) AS finished_under
FROM videos WHERE video_id = $video LIMIT 1
"""
_FAILURES = f"SELECT {FAILURE} FROM failures WHERE video_id = $video ORDER BY failed_at DESC LIMIT 100"
_After = Annotated[str | None, Query(max_length=64, description=AFTER)]
_Id = Annotated[str, Path(description="a video id")]


def router(guard: Guard, reading: Reading) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429, 503)

    @api.get("/v1/videos", summary="Videos by name, a page at a time", responses=errors)
    async def videos(
        after: _After = None,
        limit: Limit = None,
        dataset: DatasetName = None,
        uri: Annotated[str | None, Query(max_length=1000, description="text that the uri contains")] = None,
    ) -> VideosPage:
        limit = reading.page(limit)
        given = {"after": after, "dataset": dataset, "uri": uri, "limit": limit + 1}
        rows = await reading.rows(_PAGE, given, limit + 1)
        page = [VideoOut(**row) for row in rows[:limit]]
        return VideosPage(videos=page, next=page[-1].video_id if len(rows) > limit else None)

    @api.get("/v1/videos/{video_id}", summary="One video", responses=errors | responses(404))
    async def video(video_id: _Id) -> VideoDetail:
        given: dict[str, object] = {"video": video_id}
        rows = await reading.rows(_ONE, given, 1)
        pairs = await reading.ask(lambda: _of_pairs(reading.lake, video_id))
        first = next((pair for found in pairs.values() for pair in found), None)
        if not rows and first is None:
            raise Problem(HTTPStatus.NOT_FOUND, "not-found", "there is no video of this id in this lake")
        known = rows[0] if rows else {"video_id": video_id, **(first or {})}
        failures = await reading.rows(_FAILURES, given)
        return VideoDetail(
            **known | {"finished_under": known.get("finished_under") or []},
            accepted=len(pairs["triples"]),
            rejected=len(pairs["rejections"]),
            failures=[_in_time(row, first["time_base"] if first else None) for row in failures],
        )

    @api.get("/v1/videos/{video_id}/pairs", summary="Decided pairs of a video, in time", responses=errors)
    async def pairs(
        video_id: _Id,
        asked: Annotated[Page, Depends()],
    ) -> PairsPage:
        limit = reading.page(asked.limit)
        found = await reading.ask(lambda: _pairs(reading.lake, video_id))
        page, last = page_after(found, lambda pair: pair.triple_id, asked.after, limit)
        return PairsPage(pairs=page, next=last)

    return api


def _pairs(lake: CachedLake, video_id: str) -> list[Decided]:
    of_video = pc.field("video_id") == video_id
    found = [pair for table in DECISIONS for pair in decided(lake, table, of_video)]
    return sorted(found, key=lambda pair: (math.inf if pair.obs_time_s is None else pair.obs_time_s, pair.triple_id))


def _of_pairs(lake: CachedLake, video_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return what the accepted and the rejected pairs of a video say about it."""
    columns = ["uri", "dataset", "split", "time_base"]
    of_video = pc.field("video_id") == video_id
    return {table: lake.find(table, columns, of_video).to_pylist() for table in DECISIONS}


def _in_time(failure: dict[str, Any], time_base: str | None) -> FailureInTime:
    """Add seconds if a pair of the same video has its time base."""
    seconds: dict[str, float | None] = {"start_s": None, "end_s": None}
    if time_base is not None:
        for name, pts in (("start_s", failure["start_pts"]), ("end_s", failure["end_pts"])):
            seconds[name] = float(pts * Fraction(time_base)) if pts is not None else None
    return FailureInTime(**failure, **seconds)
