from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serve.admission import _DEFAULT, Admission, at_once, environment
from serve.settings import ServeSettings


def test_no_more_are_let_in_than_are_told_and_health_always_is() -> None:
    async def run() -> None:
        leave = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/v1/label":
                await leave.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        transport = httpx.ASGITransport(Admission(slow, at_once=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            inside = [asyncio.create_task(client.post("/v1/label")) for _ in range(2)]
            await asyncio.sleep(0.1)
            refused = await client.post("/v1/label")
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:worldlake:problem:busy"
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            leave.set()
            assert [(await one).status_code for one in inside] == [200, 200]
            assert (await client.post("/v1/label")).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("raises", [True, False])
def test_an_ingress_that_dies_is_a_problem_as_well(raises: bool) -> None:
    async def died(scope: Scope, receive: Receive, send: Send) -> None:
        if raises:
            raise RuntimeError("the actor died")

    async def run() -> None:
        transport = httpx.ASGITransport(Admission(died, at_once=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            answer = await client.post("/v1/label")
        assert answer.status_code == 503
        assert answer.json()["instance"] == "/v1/label"
        assert int(answer.headers["Retry-After"]) >= 1

    asyncio.run(run())


@pytest.mark.parametrize(("content_type", "status"), [("text/plain", 503), ("application/problem+json", 404)])
def test_an_application_that_is_not_there_yet_is_no_missing_page(content_type: str, status: int) -> None:
    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    async def run() -> None:
        transport = httpx.ASGITransport(Admission(answers, at_once=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            answer = await client.post("/v1/label")
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert ("Retry-After" in answer.headers) == (status == 503)

    asyncio.run(run())


def test_a_proxy_that_is_not_told_lets_in_what_default_settings_do() -> None:
    assert str(at_once(ServeSettings())) == _DEFAULT
    assert environment(ServeSettings(replicas=(1, 3)))["WORLDLAKE_AT_ONCE"] == str(3 * int(_DEFAULT))
