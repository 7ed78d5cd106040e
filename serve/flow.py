"""Backpressure across Ray Serve's proxies, for bodies and answers that are too large to be held whole.

A proxy of Ray reads a body as fast as it comes, and a replica answers as fast as it can; what the other side has not
taken yet waits in memory without a limit. Here the replica says how much of the body it takes (`READ`), the proxy how
much of the answer has been sent (`SENT`): messages of our own beside those of ASGI, which Ray passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

STREAMED = ("/v1/label/video",)
"""Paths with such bodies and answers."""
EXTENSION = "worldlake.flow"
"""In `extensions` of a scope: the other side understands these messages."""
READ = "worldlake.read"
SENT = "worldlake.sent"
WINDOW = 1 << 20
"""Bytes that may be on their way."""


class Flow:
    """The replica's side: an ASGI middleware that reads and sends no more than the proxy can pass on."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http" and scope["path"] in self._paths and EXTENSION in scope.get("extensions", {}):
            flow = _Flow(receive, send)
            await self._app(scope, flow.receive, flow.send)
        else:
            await self._app(scope, receive, send)


class _Flow:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._read = self._granted = self._given = self._sent = 0
        self._has_more = True
        self._went_on = asyncio.Event()

    async def receive(self) -> Message:
        if self._has_more and self._granted - self._read < WINDOW // 2:
            self._granted = self._read + WINDOW
            await self._send({"type": READ, "bytes": self._granted})
        while (message := await self._receive())["type"] == SENT:
            self._sent = message["bytes"]
            self._went_on.set()
        self._read += len(message.get("body", b""))
        self._has_more = message.get("more_body", False)
        # A client that has disconnected reads nothing any more: what waits for it must end.
        if message["type"] == "http.disconnect":
            self._sent = self._given
            self._went_on.set()
        return message

    async def send(self, message: Message) -> None:
        self._given += len(message.get("body", b""))
        await self._send(message)
        # While an answer is streamed Starlette receives, to learn of a client that leaves.
        while message.get("more_body", False) and self._given - self._sent > WINDOW:
            self._went_on.clear()
            await self._went_on.wait()


class Gate:
    """The proxy's side: passes a body on as it is granted, and reports what of the answer was sent."""

    def __init__(self, receive: Receive) -> None:
        """`receive` returns the body, then that the client has disconnected."""
        self._receive = receive
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._granted = 0
        self._may_read = asyncio.Event()
        self._sent = self._reported = 0

    def grant(self, message: Message) -> None:
        """Allow as much of the body as a READ message says."""
        self._granted = message["bytes"]
        self._may_read.set()

    def report(self, size: int) -> None:
        """Tell the replica how many bytes of its answer were sent."""
        self._sent += size
        if self._sent - self._reported >= WINDOW // 4:
            self._reported = self._sent
            self._messages.put_nowait({"type": SENT, "bytes": self._sent})

    async def receive(self) -> Message:
        """Return the next message for the replica."""
        return await self._messages.get()

    async def pump(self) -> None:
        """Read the body until it ends or the client disconnects. Raises what `receive` raises."""
        passed, has_more = 0, True
        while has_more:
            while passed >= self._granted:
                self._may_read.clear()
                await self._may_read.wait()
            message = await self._receive()
            passed += len(message.get("body", b""))
            has_more = message.get("more_body", False)
            self._messages.put_nowait(message)
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self._messages.put_nowait(message)
