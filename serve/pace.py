"""Deadlines and minimum rates of bodies and answers: who sends or reads too slowly is let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import Message, Receive, Send

from serve.problems import Problem, too_large

GRACE_S = 10.0
"""For any body or answer, beside what its size takes at the lowest rate."""
LOWEST_RATE = 64 << 10
"""Bytes a second."""
LONGEST_S = 1800.0
"""For a body, however large: a video at the lowest rate would keep its place for more than two hours."""
_CHUNK = 64 << 10
"""Of an answer: one that is written at once waits in memory for its reader, however large it is."""


class Left(Exception):
    """The client does not read its answer, so its connection is closed."""


class Paced:
    """The `receive` and `send` of a request, at LOWEST_RATE or faster. Only time that the client takes counts."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.most: int | None = None
        """Maximum size of the body in bytes."""
        self.has_begun = False
        """True once an answer has begun."""
        self.read = self._sent = 0
        self._reading_s = self._sending_s = 0.0
        self._is_complete = False

    async def receive(self) -> Message:
        """Return the next part of the body. Raises Problem: 408, which also closes the connection, and 413."""
        if self._is_complete:
            # Only that the client leaves can come, for as long as its answer takes.
            return await self._receive()
        allowed = min(GRACE_S + self.read / LOWEST_RATE, LONGEST_S) - self._reading_s
        began = time.monotonic()
        try:
            async with asyncio.timeout(allowed):
                message = await self._receive()
        except TimeoutError:
            least = f"at least {LOWEST_RATE >> 10} KiB a second, all of it within {LONGEST_S / 60:g} minutes"
            detail = f"the body came too slowly: send {least}"
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, "slow", detail, {"Connection": "close"}) from None
        self._reading_s += time.monotonic() - began
        self.read += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self.most is not None and self.read > self.most:
            raise too_large(self.most)
        return message

    async def send(self, message: Message, sent: Callable[[int], None] = lambda size: None) -> None:
        """Send a message, a large body in parts; call `sent` after each. Raises Left if the client reads too slowly."""
        body = message.get("body", b"")
        for start in range(0, max(1, len(body)), _CHUNK):
            part = body[start : start + _CHUNK]
            is_last = start + _CHUNK >= len(body)
            changed = {"body": part, "more_body": not is_last or message.get("more_body", False)} if body else {}
            await self._send_in_time({**message, **changed}, len(part))
            sent(len(part))

    async def _send_in_time(self, message: Message, size: int) -> None:
        allowed = GRACE_S + self._sent / LOWEST_RATE - self._sending_s
        began = time.monotonic()
        try:
            async with asyncio.timeout(allowed):
                await self._send(message)
        except TimeoutError:
            raise Left from None
        self.has_begun = True
        self._sending_s += time.monotonic() - began
        self._sent += size
