"""What a proxy lets in, with small applications behind it, in this process or behind a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from unittest.mock import MagicMock

import httpx
import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import connections, flow, load_shedding, middleware, pace
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


def test_a_key_has_its_places_others_have_theirs_and_health_needs_none() -> None:
    async def run() -> None:
        leave = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "POST" or scope["path"] == "/static/slow.js":
                await leave.wait()
            await answer(send)

        async with asking(door(slow, at_once=4)) as client:
            inside = [asyncio.create_task(client.post("/v1/label", headers=auth())) for _ in range(4)]
            await asyncio.sleep(0.1)
            refused = await client.post("/v1/predict", headers=auth())
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:worldlake:problem:busy"
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.headers["X-Content-Type-Options"] == "nosniff"
            assert (await client.get("/v1/label", headers=auth(OTHER_TOKEN))).status_code == 200
            # Those who need no key have places of their own, and health is asked outside all of them.
            inside += [asyncio.create_task(client.get("/static/slow.js")) for _ in range(ANONYMOUS)]
            await asyncio.sleep(0.1)
            assert (await client.get("/")).status_code == 503
            assert (await client.get("/healthz")).status_code == (await client.get("/metrics")).status_code == 200
            assert (await client.get("/v1/label", headers=auth(OTHER_TOKEN))).status_code == 200
            leave.set()
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
            began = time.monotonic()
            assert (await client.get("/v1/labelers", headers={"Cookie": large})).status_code == 401
            assert (await client.get("/", headers={"Cookie": large})).text == "none"
            assert time.monotonic() - began < 1
            # Ours is found among others, and passed on alone.
            among = {"Cookie": f"a=b;{COOKIE}={TOKEN} ; {large[:20]}"}
            assert (await client.get("/v1/labelers", headers=among)).text == f"{COOKIE}={TOKEN}"

    asyncio.run(run())


def test_a_length_with_many_zeros_is_a_length() -> None:
    zeros = "0" * 5000
    with listening(door(echo)) as port:
        head = request("/v1/label", f"Content-Length: {zeros}1", "Connection: close")
        assert until_closed(sent(port, head + b"a"))[0].startswith(b"HTTP/1.1 200")
        head = request("/v1/label", f"Content-Length: {zeros}{BODY + 1}", "Connection: close")
        assert until_closed(sent(port, head))[0].startswith(b"HTTP/1.1 413")


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
        leave = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await leave.wait()
            await answer(send)

        async with asking(door(slow, at_once=256)) as client:
            inside = [asyncio.create_task(client.get("/v1/triples", headers=auth())) for _ in range(READS)]
            await asyncio.sleep(0.1)
            assert (await client.get("/v1/labelers", headers=auth())).status_code == 503
            # Neither other keys nor the models wait for these.
            inside += [
                asyncio.create_task(client.get("/v1/triples", headers=auth(OTHER_TOKEN))),
                asyncio.create_task(client.post("/v1/label", headers=auth())),
            ]
            await asyncio.sleep(0.1)
            leave.set()
            assert {(await one).status_code for one in inside} == {200}

    asyncio.run(run())


def test_bodies_have_a_budget_of_which_no_key_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_shedding, "_BUFFERED_BYTES", 2 * BODY)

    async def run() -> None:
        leave = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await leave.wait()
            await answer(send)

        async with asking(door(slow, at_once=8)) as client:
            inside = asyncio.create_task(client.post("/v1/label", headers=auth(), content=bytes(BODY)))
            await asyncio.sleep(0.1)
            refused = await client.post("/v1/label", headers=auth(), content=bytes(BODY))
            assert refused.status_code == 503
            assert "large" in refused.json()["detail"]
            other = asyncio.create_task(client.post("/v1/label", headers=auth(OTHER_TOKEN), content=bytes(BODY)))
            await asyncio.sleep(0.1)
            leave.set()
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


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[int]:
    """A port at which a server as Ray's proxies start it answers."""
    connections.install()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "GRACE_S", 1.0)
    monkeypatch.setattr(connections, "HEADERS_S", 1.0)


def sent(port: int, content: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.sendall(content)
    return made


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """What came until the other side closed, and after how many seconds that was."""
    began, found = time.monotonic(), bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            found += part
    return bytes(found), time.monotonic() - began


def request(path: str, *headers: str, method: str = "POST", token: str = TOKEN) -> bytes:
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: a", f"Authorization: Bearer {token}", *headers, "", ""]
    ).encode()


@pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX-"])
def test_headers_that_do_not_come_end_a_connection(quick: None, first: bytes) -> None:
    with listening(door(echo)) as port:
        assert 0.5 < until_closed(sent(port, first))[1] < 5
        # Also those of a second request, and of one that sends a byte now and then.
        if first:
            with sent(port, request("/v1/label", method="GET")) as connection:
                assert b"200 OK" in connection.recv(1000)
                connection.sendall(first)
                assert 0.5 < until_closed(connection)[1] < 4
        with sent(port, b"GET / HTTP/1.1\r\nHost: a\r\nX-") as connection, contextlib.suppress(OSError):
            for _ in range(20):
                connection.sendall(b"x")
                time.sleep(0.25)
            pytest.fail("a header a byte at a time was waited for")


CHUNKED = b"POST /login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"a:b\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"aaaaa"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"aaaaa"),
        (b"GET /", b"aaaaa"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"a:b\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"aaaaa"),
        (CHUNKED + b"1;", b"aaaaa"),
        (request("/v1/label", "Content-Length: 1") + b"a", b"a:b\r\n"),
        (b"", b"GET /slow HTTP/1.1\r\n\r\n"),
    ],
)
def test_what_never_becomes_a_request_ends_before_it_is_large(first: bytes, more: bytes) -> None:
    """Headers, an address, trailers, requests before the first is answered: parsers gather them in memory."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(60)
        await echo(scope, receive, send)

    with listening(door(slow)) as port, sent(port, first) as connection:
        taken, block = 0, more * 2000
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while taken < 64 << 20:
                connection.sendall(block)
                taken += len(block)
        # What the kernel holds on its way counts as well.
        assert taken < 32 << 20
        assert until_closed(sent(port, request("/v1/label", "Content-Length: 1", "Connection: close") + b"a"))[1] < 1


def test_many_headers_are_refused_while_they_are_few_bytes() -> None:
    with listening(door(echo)) as port:
        lines = [f"{number}: b" for number in range(connections.HEADERS)]
        few, many = (request("/v1/label", "Connection: close", *lines[:count]) for count in (100, len(lines)))
        assert until_closed(sent(port, few.replace(b"POST", b"GET")))[0].startswith(b"HTTP/1.1 200")
        assert until_closed(sent(port, many))[0] == b""


def test_bodies_in_many_small_chunks_are_no_headers() -> None:
    with listening(door(echo)) as port:
        body = b"1\r\na\r\n" * BODY + b"0\r\nX: b\r\n\r\n"
        head = request("/v1/label", "Transfer-Encoding: chunked", "Connection: close")
        assert b"a" * BODY in until_closed(sent(port, head + body))[0]


@pytest.mark.parametrize(
    "first",
    [b"G", request("/login", "Content-Length: 9"), b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"],
    ids=["headers", "body", "idle"],
)
def test_connections_without_a_key_give_way_to_others(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(connections, "MOST", 20)
    with listening(door(echo)) as port, contextlib.ExitStack() as crowd:
        slow = crowd.enter_context(sent(port, request("/v1/label", "Content-Length: 2") + b"a"))
        time.sleep(0.2)
        for number in range(100):
            crowd.enter_context(sent(port, first))
            if number % 20 == 0:
                health = sent(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert until_closed(health)[0].startswith(b"HTTP/1.1 200")
        time.sleep(0.2)
        assert len(connections.Impatient._without_key) <= 20
        # One with a key stays in the middle of its request.
        slow.sendall(b"b")
        assert b"ab" in slow.recv(1000)
    assert not connections.Impatient._without_key


def test_connections_leave_half_of_the_files_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((1024, 512), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connections._most() == most


def test_a_trailer_is_no_header() -> None:
    """It comes before anybody looks at the headers where all of a request is in one packet."""
    with listening(door(echo)) as port:
        trailer = f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        head = b"POST /v1/label HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert until_closed(sent(port, head + b"0\r\n" + trailer))[0].startswith(b"HTTP/1.1 401")


def test_a_websocket_is_answered_that_there_is_none() -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: a")
    with listening(door(never)) as port:
        assert until_closed(sent(port, request("/v1/label", *upgrade, method="GET")))[0].startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", ["/v1/label", "/v1/label/video", "/login"])
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_slow_body_gets_408_and_its_connection_is_closed(quick: None, path: str, framing: str) -> None:
    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        if flow.EXTENSION in scope.get("extensions", {}):
            await send({"type": flow.READ, "bytes": flow.WINDOW})
        while (await receive()).get("more_body"):
            pass
        await answer(send)

    with listening(door(reads)) as port:
        first = b"1\r\na\r\n" if "chunked" in framing else b"a"
        found, took_s = until_closed(sent(port, request(path, framing) + first))
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in found
        assert 0.5 < took_s < 5


def test_a_body_that_is_fast_enough_must_end_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST_S", 1.0)
    with listening(door(echo)) as port, sent(port, request("/v1/label", f"Content-Length: {BODY}")) as connection:
        for _ in range(3):
            connection.sendall(b"a" * 10)
            time.sleep(0.2)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_an_answer_may_take_longer_than_a_body(quick: None) -> None:
    """Who waits for an answer sends nothing; Ray cancels a request whose `receive` ends."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        left = asyncio.create_task(receive())  # type: ignore[arg-type]
        done, _ = await asyncio.wait({left}, timeout=2.5)
        await answer(send, 500 if done else 200)
        left.cancel()

    with listening(door(slow)) as port:
        head = request("/v1/label", "Content-Length: 1", "Connection: close")
        assert until_closed(sent(port, head + b"a"))[0].startswith(b"HTTP/1.1 200")


def test_a_body_as_fast_as_the_lowest_rate_is_taken(quick: None) -> None:
    with listening(door(echo)) as port, sent(port, request("/v1/label", f"Content-Length: {BODY}")) as connection:
        for _ in range(8):
            connection.sendall(b"a" * (BODY // 8))
            time.sleep(0.1)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_slow_reader_loses_its_place_and_its_answer(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LOWEST_RATE", 4 << 20)
    large = bytes(32 << 20)
    ended = threading.Event()

    async def tells(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": large})
        finally:
            ended.set()

    with listening(door(tells, at_once=1)) as port, sent(port, request("/v1/label", method="GET")) as reader:
        time.sleep(0.3)
        busy = until_closed(sent(port, request("/v1/label", "Connection: close", method="GET")))[0]
        assert busy.startswith(b"HTTP/1.1 503"), "the first has the only place"
        assert ended.wait(10)
        time.sleep(0.2)
        got, _ = until_closed(sent(port, request("/v1/label", "Connection: close", method="GET")))
        assert len(got) > len(large), "a reader that reads gets its answer, and the place is free again"
        assert len(until_closed(reader)[0]) < len(large)


def test_slow_readers_of_pages_keep_nobody_out(quick: None) -> None:
    with listening(door(lambda scope, receive, send: answer(send, body=bytes(8 << 20)))) as port:
        request = b"GET /static/vendor/large.js HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        with contextlib.ExitStack() as readers:
            for _ in range(2 * ANONYMOUS):
                readers.enter_context(sent(port, request))
                time.sleep(0.02)
            assert until_closed(sent(port, request))[0].startswith(b"HTTP/1.1 200")


class Between:
    """As Ray Serve is: it takes whatever it gets, and passes it on through queues without a limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held = self.most_held = 0

    def _hold(self, message: Message, sign: int) -> Message:
        self._held += sign * len(message.get("body", b""))
        self.most_held = max(self.most_held, self._held)
        return message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        to_app: asyncio.Queue[Message] = asyncio.Queue()
        to_client: asyncio.Queue[Message] = asyncio.Queue()

        async def take() -> None:
            while True:
                to_app.put_nowait(self._hold(await receive(), 1))

        async def give() -> Message:
            return self._hold(await to_app.get(), -1)

        async def put(message: Message) -> None:
            to_client.put_nowait(self._hold(message, 1))

        taking, answering = asyncio.create_task(take()), asyncio.create_task(self._app(scope, give, put))
        is_complete = False
        while not is_complete:
            message = self._hold(await to_client.get(), -1)
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body")
        await answering
        taking.cancel()


def test_large_bodies_and_answers_wait_for_the_other_side() -> None:
    """No more than a window is on its way between a proxy and a replica, whichever of them is slow."""
    size, read, given = 16 * flow.WINDOW, [0], [0]

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(size // 65536):
            yield bytes(65536)
            given[0] += 65536

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        has_more = True
        while has_more:
            message = await receive()
            read[0] += len(message["body"])
            has_more = message["more_body"]
            await asyncio.sleep(0.005)
        await StreamingResponse(stream())(scope, receive, send)

    path = flow.STREAMED[0]
    between = Between(flow.Flow(app, [path]))
    with (
        listening(door(between)) as port,
        sent(port, request(path, f"Content-Length: {2 * flow.WINDOW}", "Connection: close")) as client,
    ):
        client.sendall(bytes(2 * flow.WINDOW))
        time.sleep(1.5)
        assert read[0] == 2 * flow.WINDOW
        # The client has read nothing yet: what was made is a window, and what sockets hold.
        assert 0 < given[0] < size
        found, _ = until_closed(client)
        assert len(found) > size == given[0]
        assert between.most_held <= flow.WINDOW + (128 << 10)


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
    """What a handle of Ray Serve makes to follow its deployment stays when the handle is dropped."""
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
