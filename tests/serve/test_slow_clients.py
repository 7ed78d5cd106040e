"""Clients that send or read slowly, or never end, at a real server with the proxy's admission in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import connections, flow, pace
from serve.load_shedding import ANONYMOUS
from tests.serve.test_load_shedding import BODY, TOKEN, answer, door, echo, never

pytestmark = pytest.mark.slow


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
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    made.sendall(content)
    return made


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """Return what came until the other side closed, and the seconds until then."""
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
        assert until_closed(sent(port, first))[1] > 0.5
        # Also those of a second request, and of one that sends a byte now and then.
        if first:
            with sent(port, request("/v1/label", method="GET")) as connection:
                assert b"200 OK" in connection.recv(1000)
                connection.sendall(first)
                assert until_closed(connection)[1] > 0.5
        with sent(port, b"GET / HTTP/1.1\r\nHost: a\r\nX-") as connection, contextlib.suppress(OSError):
            for _ in range(240):
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
        found, _ = until_closed(sent(port, request("/v1/label", "Content-Length: 1", "Connection: close") + b"a"))
        assert found.startswith(b"HTTP/1.1 200"), "others are answered meanwhile"


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


def test_a_length_with_many_zeros_is_a_length() -> None:
    zeros = "0" * 5000
    with listening(door(echo)) as port:
        head = request("/v1/label", f"Content-Length: {zeros}1", "Connection: close")
        assert until_closed(sent(port, head + b"a"))[0].startswith(b"HTTP/1.1 200")
        head = request("/v1/label", f"Content-Length: {zeros}{BODY + 1}", "Connection: close")
        assert until_closed(sent(port, head))[0].startswith(b"HTTP/1.1 413")


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
        assert took_s > 0.5


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
    begun, ended = threading.Event(), threading.Event()

    async def tells(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            begun.set()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": large})
        finally:
            ended.set()

    with listening(door(tells, at_once=1)) as port, sent(port, request("/v1/label", method="GET")) as reader:
        assert begun.wait(60)
        busy = until_closed(sent(port, request("/v1/label", "Connection: close", method="GET")))[0]
        assert busy.startswith(b"HTTP/1.1 503"), "the first has the only place"
        assert ended.wait(60)
        got = b"HTTP/1.1 503"
        while got.startswith(b"HTTP/1.1 503"):  # until the place is free again
            got, _ = until_closed(sent(port, request("/v1/label", "Connection: close", method="GET")))
        assert len(got) > len(large), "a reader that reads gets its answer"
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
