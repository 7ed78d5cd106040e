"""`/v1/label/video`: labels of a video, streamed as events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from lake.retry import Schedule, retry_async
from lake.tables import Rows
from serve.api.label import Write, as_label, media_type, unsupported, write_mode
from serve.flow import STREAMED
from serve.problems import Problem, bad_request, internal, responses
from serve.queries import asked
from serve.schemas import VideoIn, VideoTriple, WriteMode, encoded, json_or_files
from serve.services import Services
from serve.videos import Videos, save

(PATH,) = STREAMED

log = logging.getLogger("serve.video")
_BUSY = Schedule((0.5, 1, 2, 4, 8, 15))
"""While other requests are labeled: a stream that has begun does not give up at the first."""

_Place = tuple[Path, AsyncExitStack]
"""A folder, and what has to end before another request may have its place."""
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: `triple` for each pair (as in /v1/label, with times and images), `done` with sums, "
        "`problem` where it breaks off",
        "content": {"text/event-stream": {}},
    }
}


def router(services: Services) -> APIRouter:
    """Return the endpoint."""
    api = APIRouter(tags=["label"], dependencies=[Depends(services.guard.require("label"))])

    async def place(request: Request) -> AsyncIterator[_Place]:
        with services.videos.place(request.state.key.key_id) as folder:
            async with AsyncExitStack() as ending:
                yield folder, ending

    @api.post(
        PATH,
        summary="Label the frame pairs of a video, as server-sent events",
        responses=responses(400, 401, 403, 404, 413, 415, 422, 429, 503) | _EVENTS,
        openapi_extra=json_or_files(VideoIn, "video"),
        response_class=StreamingResponse,
    )
    async def label_video(request: Request, write: Write = None, place: _Place = Depends(place)) -> Response:  # noqa: B008 - so FastAPI has it
        folder, ending = place
        videos, mode, path = services.videos, write_mode(request, write), folder / "video"
        if media_type(request) == "application/json":
            entry = await videos.run(videos.find, await _uri(request))
            if (video_id := await asked(lambda: videos.cataloged(entry))) is not None:
                # A labeling run decides about it, under its own id.
                mode = "no"
                if (rows := await asked(lambda: videos.decided(video_id))) is not None:
                    return _stream(_told(rows), ending)
            await videos.run(videos.fetch, entry, path)
        else:
            await _save(request, path, videos)
        await videos.run(videos.check, path)
        return _stream(_labeled(path, mode, services), ending)

    return api


async def _uri(request: Request) -> str:
    try:
        return VideoIn.model_validate_json(await request.body()).uri
    except ValidationError as error:
        first = error.errors()[0]
        raise bad_request("invalid", f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None


async def _save(request: Request, path: Path, videos: Videos) -> None:
    if media_type(request) != "multipart/form-data":
        raise unsupported(request)
    async with request.form(max_files=1, max_fields=0) as form:
        file = form.get("video")
        if not isinstance(file, UploadFile):
            raise bad_request("invalid", "send one file, video")
        await videos.run(save, file.file, path)


def _stream(events: AsyncGenerator[str], ending: AsyncExitStack) -> StreamingResponse:
    async def told() -> AsyncGenerator[str]:
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except Problem as problem:
            yield _event("problem", problem.document(PATH))
        except Exception:
            # Its status is long sent; a stream that only stops would be taken for a broken connection.
            log.exception("a video was not labeled to its end")
            yield _event("problem", internal().document(PATH))

    # Of a client that leaves nothing else ends the stream before its place is another's.
    stream = told()
    ending.push_async_callback(stream.aclose)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _labeled(path: Path, mode: WriteMode, services: Services) -> AsyncGenerator[str]:
    counts = {"sampled": 0, "accepted": 0, "rejected": 0, "failed": 0}
    async with aclosing(services.videos.sample(path)) as segments:
        async for rows in segments:
            pairs = [row for row in rows if row["obs"] is not None]
            broken = [row["message"] for row in rows if row["obs"] is None and row["scope"] == "video"]
            if broken:
                raise bad_request("video", f"this video cannot be decoded: {broken[0]}")
            for start in range(0, len(pairs), services.limits.pairs):
                for row in await _decided(pairs[start : start + services.limits.pairs], mode, services):
                    yield _triple(row, counts)
    yield _event("done", counts)


async def _decided(pairs: Rows, mode: WriteMode, services: Services) -> Rows:
    async def work() -> Rows:
        images = {row["triple_id"]: row for row in pairs}
        rows = await services.write(await services.label(pairs), mode)
        return [{**images[row["triple_id"]], **row} for row in rows]

    return await retry_async(lambda: services.within(None, work), _BUSY, _is_busy)


def _is_busy(error: Exception) -> bool:
    return isinstance(error, Problem) and error.kind == "busy"


async def _told(rows: Rows) -> AsyncGenerator[str]:
    counts = {"sampled": 0, "accepted": 0, "rejected": 0, "failed": 0}
    for row in rows:
        yield _triple(row, counts)
    yield _event("done", counts)


def _triple(row: dict[str, Any], counts: dict[str, int]) -> str:
    label = as_label(row)
    counts["sampled"] += 1
    counts[label.verdict] += 1
    times = {name: row[name] for name in ("obs_time_s", "next_time_s")}
    images = {name: encoded(row[name]) if row[name] is not None else None for name in ("obs", "next_obs")}
    return _event("triple", VideoTriple(**label.model_dump(), **times, **images).model_dump(mode="json"))


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
