"""The HTTP application: endpoints, errors and limits put together. Needs no cluster, only something that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from serve import problems
from serve.api import health, label, label_video, overview, predict, rejections, runs, sql, triples, videos
from serve.auth import Authentication
from serve.explorer import pages
from serve.flow import STREAMED, Flow
from serve.middleware import BodyLimit, Metrics, RequestLog
from serve.queries import Reading
from serve.schemas import LabelIn, VideoIn
from serve.services import Services

_ABOUT = """Live labels and verified predictions, by the models of `worldlake label` and `worldlake evaluate`.

Errors are problem details (RFC 9457). `Authorization: Bearer wl_...`; keys have the scopes label, predict, read, admin.
"""


def build_app(services: Services) -> FastAPI:
    """Return the application over given models and a given lake."""
    reading = Reading(services.lake, services.limits)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        # Start also if the lake does not answer: /readyz says so.
        await asyncio.gather(overview.prepare(reading), reading.prepare(), return_exceptions=True)
        yield
        await services.drain()
        reading.close()

    app = FastAPI(
        title="worldlake",
        version=version("worldlake"),
        description=_ABOUT,
        # Their pages load scripts from elsewhere, which our headers forbid, as would a machine without a network.
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    problems.install(app)
    app.include_router(health.router(services))
    app.include_router(label.router(services))
    app.include_router(label_video.router(services))
    if services.world_size is not None:
        app.include_router(predict.router(services))
    for group in (triples, sql, rejections, overview, runs, videos):
        app.include_router(group.router(services.guard, reading))
    pages.install(app, services)
    # The last one is the outermost, so that refused requests are counted and logged too.
    app.add_middleware(Flow, paths=STREAMED)
    app.add_middleware(Authentication, guard=services.guard)
    larger = dict.fromkeys(STREAMED, services.limits.video_bytes)
    app.add_middleware(BodyLimit, most=services.limits.body_bytes, larger=larger)
    app.add_middleware(Metrics)
    app.add_middleware(RequestLog)
    # Schemas that the OpenAPI document refers to and that no signature names.
    schemas = app.openapi()["components"]["schemas"]
    for model in (problems.ProblemDocument, LabelIn, VideoIn):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    return app
