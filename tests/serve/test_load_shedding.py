"""Load shedding in a proxy, with small applications behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from unittest.mock import MagicMock

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import load_shedding, middleware
from serve.auth import COOKIE, session_key
from serve.keys import Key
from serve.limits import Limits
from serve.load_shedding import ANONYMOUS, READS, Admission, at_once, environment, with_others
from serve.settings import ServeSettings

MINE, TOKEN = session_key()
OTHERS, OTHER_TOKEN = session_key()
BODY = 4096


def auth(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def door(app: ASGIApp, at_once: int = 2, keys: Callable[[], list[Key]] = lambda: [MINE, OTHERS]) -> Admission:
    return Admission(app, at_once, keys, Limits(body_bytes=BODY, video_bytes=BODY * 1024))


def asking(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


async def answer(send: Send, status: int = 200, body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    assert not message["more_body"]
    await answer(send, body=message["body"])


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("nobody should come so far")


class Slow:
    """An application that answers what is `held` when it is told to, and counts the requests that have come so far."""

    def __init__(self, held: Callable[[Scope], bool] = lambda scope: True) -> None:
        self.leave = asyncio.Event()
        self._held, self._entered = held, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._held(scope):
            self._entered += 1
            await self.leave.wait()
        await answer(send)

    async def has(self, count: int) -> None:
        """Wait until `count` requests are held, so that the next one finds their places taken on any machine."""
        while self._entered < count:
            await asyncio.sleep(0.01)


def test_a_key_has_its_places_others_have_theirs_and_health_needs_none() -> None:
    async def run() -> None:
        slow = Slow(lambda scope: scope["method"] == "POST" or scope["path"] == "/static/slow.js")
        async with asking(door(slow, at_once=4)) as client:
            inside = [asyncio.create_task(client.post("/v1/label", headers=auth())) for _ in range(4)]
            await slow.has(4)
            refused = await client.post("/v1/predict", headers=auth())
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:worldlake:problem:busy"
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.headers["X-Content-Type-Options"] == "nosniff"
            assert (await client.get("/v1/label", headers=auth(OTHER_TOKEN))).status_code == 200
            # Those who need no key have places of their own, and health is asked outside all of them.
            inside += [asyncio.create_task(client.get("/static/slow.js")) for _ in range(ANONYMOUS)]
            await slow.has(4 + ANONYMOUS)
            assert (await client.get("/")).status_code == 503
            assert (await client.get("/healthz")).status_code == (await client.get("/metrics")).status_code == 200
            assert (await client.get("/v1/label", headers=auth(OTHER_TOKEN))).status_code == 200
            slow.leave.set()
            assert {(await one).status_code for one in inside} == {200}
            assert (await client.post("/v1/label", headers=auth())).status_code == 200

    asyncio.run(run())


def status_without_body(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> int:
    """The status of the answer to a request whose body must not be read."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the body was read")

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(door(never)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", ["/v1/label", "/v1/sql", "/v1/label/video"])
def test_without_a_key_no_byte_of_a_body_is_read(path: str) -> None:
    for headers in ([], [(b"authorization", b"Bearer wl_000000000000_" + b"a" * 43)]):
        assert status_without_body("POST", path, headers) == 401


def test_a_page_of_another_site_is_refused_before_anything_else() -> None:
    async def run() -> None:
        async with asking(door(never)) as client:
            cookies = {"Cookie": f"worldlake_key={TOKEN}", "Sec-Fetch-Site": "cross-site"}
            for path in ("/v1/kept?keep=true", "/readyz", "/openapi.json"):
                assert (await client.get(path, headers=cookies)).status_code == 403

    asyncio.run(run())


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//]", "null", "http://\u2100", "http://service.evil"])
@pytest.mark.parametrize("host", ["service", "", None])
def test_an_origin_that_is_no_address_is_another_site(origin: str, host: str | None) -> None:
    headers = [(b"origin", origin.encode("utf-8"))] + ([(b"host", host.encode())] if host is not None else [])

    assert status_without_body("GET", "/", headers) == 403


@pytest.mark.parametrize("name", [COOKIE, "other"])
def test_a_long_cookie_holds_up_nobody(name: str) -> None:
    """Python's own reader takes five seconds for this one, in which a proxy answers nobody else."""
    large = f'{name}="' + '\\"' * 30_000 + '"'

    async def tells(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, body=Headers(scope=scope).get("Cookie", "none").encode())

    async def run() -> None:
        async with asking(door(tells)) as client:
            began = time.process_time()
            assert (await client.get("/v1/labelers", headers={"Cookie": large})).status_code == 401
            assert (await client.get("/", headers={"Cookie": large})).text == "none"
            assert time.process_time() - began < 2
            # Ours is found among others, and passed on alone.
            among = {"Cookie": f"a=b;{COOKIE}={TOKEN} ; {large[:20]}"}
            assert (await client.get("/v1/labelers", headers=among)).text == f"{COOKIE}={TOKEN}"

    asyncio.run(run())


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("path", ["/v1/sql", "/v1/label", "/login"])
def test_a_body_that_is_too_large_gets_413_however_it_is_sent(path: str, is_chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1024)

    async def run() -> None:
        async with asking(door(never)) as client:
            content = parts() if is_chunked else bytes(20 * 1024)
            refused = await client.post(path, headers=auth(), content=content)
            assert (refused.status_code, refused.json()["type"]) == (413, "urn:worldlake:problem:body")

    asyncio.run(run())


def test_reads_of_one_key_do_not_take_the_threads_of_all() -> None:
    async def run() -> None:
        slow = Slow()
        async with asking(door(slow, at_once=256)) as client:
            inside = [asyncio.create_task(client.get("/v1/triples", headers=auth())) for _ in range(READS)]
            await slow.has(READS)
            assert (await client.get("/v1/labelers", headers=auth())).status_code == 503
            # Neither other keys nor the models wait for these.
            inside += [
                asyncio.create_task(client.get("/v1/triples", headers=auth(OTHER_TOKEN))),
                asyncio.create_task(client.post("/v1/label", headers=auth())),
            ]
            await slow.has(READS + 2)
            slow.leave.set()
            assert {(await one).status_code for one in inside} == {200}

    asyncio.run(run())


def test_bodies_have_a_budget_of_which_no_key_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_shedding, "_BUFFERED_BYTES", 2 * BODY)

    async def run() -> None:
        slow = Slow()
        async with asking(door(slow, at_once=8)) as client:
            inside = asyncio.create_task(client.post("/v1/label", headers=auth(), content=bytes(BODY)))
            await slow.has(1)
            refused = await client.post("/v1/label", headers=auth(), content=bytes(BODY))
            assert refused.status_code == 503
            assert "large" in refused.json()["detail"]
            other = asyncio.create_task(client.post("/v1/label", headers=auth(OTHER_TOKEN), content=bytes(BODY)))
            await slow.has(2)
            slow.leave.set()
            assert [(await one).status_code for one in (inside, other)] == [200, 200]
            # Given back.
            assert (await client.post("/v1/label", headers=auth(), content=bytes(BODY))).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("raises", [True, False])
def test_an_ingress_that_dies_is_a_problem_as_well(raises: bool) -> None:
    async def died(scope: Scope, receive: Receive, send: Send) -> None:
        if raises:
            raise RuntimeError("the actor died")

    async def run() -> None:
        async with asking(door(died)) as client:
            found = await client.post("/v1/label", headers=auth())
        assert found.status_code == 503
        assert found.json()["instance"] == "/v1/label"
        assert int(found.headers["Retry-After"]) >= 1

    asyncio.run(run())


@pytest.mark.parametrize(("content_type", "status"), [("text/plain", 503), ("application/problem+json", 404)])
def test_an_application_that_is_not_there_yet_is_no_missing_page(content_type: str, status: int) -> None:
    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    async def run() -> None:
        async with asking(door(answers)) as client:
            found = await client.post("/v1/label", headers=auth())
        assert found.status_code == status
        assert found.headers["content-type"] == "application/problem+json"
        assert ("Retry-After" in found.headers) == (status == 503)

    asyncio.run(run())


def test_refusals_without_a_key_are_few_lines_and_those_with_a_key_all_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        long = "/v1/" + "a" * 60_000
        async with asking(door(never)) as client:
            for _ in range(100):
                assert (await client.get(long)).status_code == 401
            # Too large, after its key was known.
            for _ in range(20):
                assert (await client.post("/v1/sql", headers=auth(), content=bytes(2 * BODY))).status_code == 413
            await asyncio.sleep(1.2)
            assert (await client.get("/v1/sql")).status_code == 401

    began = time.monotonic()
    with caplog.at_level(logging.INFO, "serve.audit"):
        asyncio.run(run())
    seconds = time.monotonic() - began + 1
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.audit"]
    assert sum(line["key"] == MINE.name for line in lines) == 20
    *refused, last = [line for line in lines if line["key"] is None]
    sums = [line for line in refused if "left_out" in line]
    assert len(refused) <= (middleware.REFUSALS_A_SECOND + 1) * seconds
    assert sum(line["left_out"] for line in sums) + len(refused) - len(sums) == 100
    assert sums[0]["by_status"] == {"401": sums[0]["left_out"]}
    assert last["path"] == "/v1/sql", "those of later seconds have lines again"
    assert max(len(record.message) for record in caplog.records if record.name == "serve.audit") < 600


def test_keys_that_nobody_can_tell_yet_are_a_problem_of_the_moment() -> None:
    def unknown() -> list[Key]:
        raise RuntimeError("there is no ingress")

    async def run() -> None:
        async with asking(door(never, keys=unknown)) as client:
            found = await client.get("/v1/labelers", headers=auth())
        assert (found.status_code, found.json()["type"]) == (503, "urn:worldlake:problem:busy")

    asyncio.run(run())


def test_a_proxy_that_is_not_told_lets_in_what_default_settings_do() -> None:
    assert str(at_once(ServeSettings())) == load_shedding._DEFAULT
    assert environment(ServeSettings(replicas=(1, 3)))["WORLDLAKE_AT_ONCE"] == str(3 * int(load_shedding._DEFAULT))
    assert with_others(256) == 320


@pytest.mark.parametrize("kind", ["websocket"])
def test_what_is_none_of_http_is_closed(kind: str) -> None:
    async def run() -> list[Message]:
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        await door(never)({"type": kind, "path": "/v1/label", "headers": []}, receive, send)
        return messages

    assert [message["type"] for message in asyncio.run(run())] == ["websocket.close"]


def test_a_proxy_makes_one_handle_however_often_it_asks_for_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve keeps what a handle made to follow its deployment after the handle is dropped."""
    made: list[MagicMock] = []

    def handle(*_: str) -> MagicMock:
        made.append(MagicMock())
        made[-1].keys.remote().result.return_value = []
        return made[-1]

    monkeypatch.setattr("ray.serve.handle.DeploymentHandle", handle)
    load_shedding._asking_for_keys.cache_clear()
    try:
        assert [load_shedding._keys_of_the_service() for _ in range(3)] == [[]] * 3
    finally:
        load_shedding._asking_for_keys.cache_clear()
    assert len(made) == 1
