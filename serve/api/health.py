"""`/healthz`, `/readyz`, `/metrics`: for those who run the service. They need no key and say nothing about the lake."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serve.problems import busy, responses
from serve.services import Services
from serve.shared import Shared


def router(services: Services) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["health"])
    # A thread of its own, so that a lake that does not answer takes none of those that read it for keys.
    thread = ThreadPoolExecutor(1, thread_name_prefix="ready")
    shared: Shared[object] = Shared()

    async def ask_the_lake() -> object:
        return await asyncio.get_running_loop().run_in_executor(thread, services.lake.table, "triples")

    @api.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="The lake answers; models were warm before the first request", responses=responses(503))
    async def readyz() -> dict[str, str]:
        try:
            await asyncio.wait_for(shared.get(ask_the_lake), 5)
        except Exception as error:  # whatever keeps the lake from answering
            raise busy(f"the lake does not answer ({type(error).__name__})", 5) from None
        return {"status": "ready", "labeler_id": services.labeler_id}

    @api.get("/metrics", summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return api
