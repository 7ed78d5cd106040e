"""Health and metrics, which anybody may ask for as often as they like: computed once, for all who ask."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from serve import problems, shared
from serve.api import health
from serve.shared import Shared
from tests.serve.test_load_shedding import answer, asking, door


def test_an_answer_is_computed_once_kept_for_a_moment_and_survives_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "KEPT_S", 0.2)
    computed = 0

    async def compute() -> int:
        nonlocal computed
        computed += 1
        await asyncio.sleep(0.05)
        if computed == 2:
            raise ValueError("not now")
        return computed

    async def run() -> None:
        one: Shared[int] = Shared()
        first = asyncio.create_task(one.get(compute))
        await asyncio.sleep(0)
        others = [asyncio.create_task(one.get(compute)) for _ in range(100)]
        await asyncio.sleep(0)
        first.cancel()
        assert set(await asyncio.gather(*others)) == {1}
        assert await one.get(compute) == 1
        await asyncio.sleep(0.25)
        for _ in range(2):
            with pytest.raises(ValueError, match="not now"):
                await one.get(compute)
        await asyncio.sleep(0.25)
        assert await one.get(compute) == 3

    asyncio.run(run())


def test_a_thousand_at_once_ask_the_ingress_once() -> None:
    asked: Counter[str] = Counter()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        asked[scope["path"]] += 1
        assert b"origin" not in dict(scope["headers"])
        await asyncio.sleep(0.3)
        await answer(send, body=scope["path"].encode())

    async def run() -> None:
        async with asking(door(slow)) as client:
            for path in ("/healthz", "/readyz", "/metrics"):
                origin = {"Origin": "http://service"}
                found = await asyncio.gather(*(client.get(path, headers=origin) for _ in range(300)))
                assert {(one.status_code, one.text) for one in found} == {(200, path)}
                assert len({one.headers["X-Request-Id"] for one in found}) == 300
                # Others than GET get nothing for free.
                assert len(await asyncio.gather(*(client.put(path) for _ in range(100)))) == 100

    asyncio.run(run())
    assert all(count <= 1 + 32 + 1 for count in asked.values()), asked


def test_an_ingress_that_says_nothing_is_no_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.load_shedding._SHARED_S", 0.2)

    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        async with asking(door(hangs)) as client:
            assert (await client.get("/healthz")).status_code == 503

    asyncio.run(run())


def test_a_lake_that_does_not_answer_takes_no_thread_of_reads() -> None:
    leave, entered = threading.Event(), Counter[str]()

    def table(name: str) -> None:
        entered[name] += 1
        leave.wait(10)

    services: Any = SimpleNamespace(lake=SimpleNamespace(table=table), labeler_id="l")
    app = FastAPI()
    problems.install(app)
    app.include_router(health.router(services))

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            ready = [asyncio.create_task(client.get("/readyz")) for _ in range(64)]
            await asyncio.sleep(0.3)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 2) == "read"
            leave.set()
            assert {(await one).status_code for one in ready} == {200}

    asyncio.run(run())
    assert entered == {"triples": 1}
