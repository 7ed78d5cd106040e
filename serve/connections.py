"""Connections of a proxy that cost it more than a request may: they end, so that others and health checks get through.

uvicorn waits forever for the first byte of a request and for its last header, takes headers and requests that follow
each other without a limit, and any number of connections. It has no setting for any of it.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any, ClassVar

from starlette.types import Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 15.0
"""For the headers of a request, from the first byte of a connection or of the next request on it."""
HEAD_BYTES = 64 << 10
"""Of the request line and the headers of a request, or of the trailers of a body."""
HEADERS = 256
"""Of a request. A header of a few bytes takes fifty times as many in memory."""
PIPELINED = 16
"""Requests that a client may send before the first of them is answered."""
MOST = 4096
"""Connections at once, or half as many as this process may have files open where that is fewer."""
_UNREAD_MS = 60_000
"""After so long the kernel ends a connection whose client takes nothing of what was sent to it."""
_PART = 16 << 10
"""Bytes that are parsed before they are counted; one read brings many more."""


def install() -> None:
    """Use `Impatient` connections in the servers that this process starts from now on."""
    HTTP_PROTOCOLS["auto"] = "serve.connections:Impatient"


def abort(send: Send) -> None:
    """Abort the connection that a server's `send` writes to, with what is buffered."""
    transport = _transport_of(send)
    if transport is not None:
        transport.abort()


def admit(send: Send) -> None:
    """Keep the connection that a server's `send` writes to while its request is answered: it has a key."""
    transport = _transport_of(send)
    if transport is not None and isinstance(connection := transport.get_protocol(), Impatient):
        connection.stay()


def _transport_of(send: Send) -> Any:
    return getattr(getattr(send, "__self__", None), "transport", None)


class Impatient(HttpToolsProtocol):
    """A connection with limits on the time and size of headers, which ends when there are too many connections.

    Shares for each address would not help: behind a reverse proxy, which TLS needs, all have the same one.
    """

    _without_key: ClassVar[dict[Impatient, None]] = {}
    """Those that end where there are too many: no key is known of their request, oldest first."""
    _ends: asyncio.TimerHandle | None = None
    _head = 0
    """Bytes since the last complete head or the last size of a chunk that are of no body."""
    _is_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if (made := transport.get_extra_info("socket")) is not None and made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        self._wait()
        self._without_key[self] = None
        if len(self.connections) > _most():
            self._end_oldest_other()

    def stay(self) -> None:
        """Keep the connection until the response is complete."""
        self._without_key.pop(self, None)

    def on_response_complete(self) -> None:
        """Let the connection be closed again, as the newest."""
        self.stay()
        if not self.transport.is_closing():
            self._without_key[self] = None
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Keep the time limit running unless these bytes complete the headers of a request."""
        for start in range(0, len(data), _PART):
            if self.transport.is_closing():
                return
            part = data[start : start + _PART]
            self._head += len(part)
            super().data_received(part)
            if self._takes_too_much():
                self.transport.abort()
        self._wait()

    def on_message_begin(self) -> None:
        """Take headers."""
        super().on_message_begin()
        self._is_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers are ignored, because a proxy in front may not have checked them."""
        if self._is_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Reset the count."""
        self._head, self._is_head = 0, False
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Reset the count: what precedes the next chunk, or follows the last one, has the limit of headers."""
        self._head = 0

    def on_body(self, body: bytes) -> None:
        """Do not count bodies: they have separate limits."""
        self._head -= len(body)
        super().on_body(body)

    def handle_websocket_upgrade(self) -> None:
        """Refuse: there are none, and what is a websocket is none of these connections any more."""
        self.send_400_response("there are no websockets here")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._end_waiting()
        self.stay()
        # uvicorn keeps a connection that was reset, with all that it holds, until it would have ended by itself.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _takes_too_much(self) -> bool:
        return self._head > HEAD_BYTES or len(self.headers or ()) > HEADERS or len(self.pipeline) > PIPELINED

    def _end_oldest_other(self) -> None:
        oldest = next(iter(self._without_key))
        if oldest is not self:
            oldest.stay()
            oldest.transport.abort()

    def _wait(self) -> None:
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._end_waiting()
        elif self._ends is None and not self.transport.is_closing():
            self._ends = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _end_waiting(self) -> None:
        if self._ends is not None:
            self._ends.cancel()
            self._ends = None


def _most() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else min(MOST, files // 2)
