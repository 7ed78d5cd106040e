"""Connections of a proxy that send no request, or do not read what they are sent, end after a while.

uvicorn waits forever for the first byte of a request and for its last header, and has no setting for it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from starlette.types import Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 15.0
"""For the headers of a request, from the first byte of a connection or of the next request on it."""
_UNREAD_MS = 60_000
"""After so long the kernel ends a connection whose client takes nothing of what was sent to it."""


def install() -> None:
    """Have the servers that this process starts from now on use `Impatient` connections."""
    HTTP_PROTOCOLS["auto"] = "serve.connections:Impatient"


def abort(send: Send) -> None:
    """End the connection that a server's `send` writes to, with what waits in it."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()


class Impatient(HttpToolsProtocol):
    """A connection that waits only so long for the headers of a request."""

    _ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if (made := transport.get_extra_info("socket")) is not None and made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on where these bytes do not complete the headers of a request."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._end_waiting()
        # uvicorn keeps a connection that was reset, with all that it holds, until it would have ended by itself.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

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
