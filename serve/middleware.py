"""Around every request: the size of its body, headers for browsers, a line in the audit log, and metrics."""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import math
import re
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.auth import COOKIE
from serve.problems import Problem, too_large

audit = logging.getLogger("serve.audit")
REFUSALS_A_SECOND = 5
"""Lines of refused requests without a key. The rest is counted, because anyone can send any number."""
_PATH = 200
"""Maximum length of a path in the audit log; a path may have tens of thousands of characters."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ID = "X-Request-Id"
_IDS = re.compile(r"[\w.:-]{1,100}", re.ASCII)
_OWN = re.compile(rb"(?:^|;)\s*" + COOKIE.encode() + rb"=([\w-]{0,200})(?=\s*(?:;|$))")
REQUESTS = Counter("worldlake_requests_total", "Requests by endpoint and status", ("route", "status"))
SECONDS = Histogram("worldlake_request_seconds", "Time to answer by endpoint", ("route",))


def audit_to_output() -> None:
    """Write the audit log of this process to its output, which Ray keeps."""
    audit.setLevel(logging.INFO)
    audit.handlers = [logging.StreamHandler(sys.stdout)]
    # Its lines are JSON already: once is enough.
    audit.propagate = False


class _Refusals:
    """Writes the first lines of each second, and at its end how many more there were."""

    def __init__(self) -> None:
        self._began, self._written = -math.inf, 0
        self._left_out: collections.Counter[int] = collections.Counter()

    def write(self, line: dict[str, Any]) -> None:
        """Write a line, or count it. Called in the event loop."""
        if time.monotonic() - self._began > 1:
            self._began, self._written = time.monotonic(), 0
        if self._written < REFUSALS_A_SECOND:
            self._written += 1
            audit.info(json.dumps(line))
            return
        if not self._left_out:
            asyncio.get_running_loop().call_later(1, self._sum_up)
        self._left_out[line["status"]] += 1

    def _sum_up(self) -> None:
        audit.info(json.dumps({"key": None, "left_out": self._left_out.total(), "by_status": dict(self._left_out)}))
        self._left_out.clear()


_refusals = _Refusals()


class Named:
    """A request and its id: the one in its headers, or a new one, which is put there."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.key: str | None = None
        """The name of its key, when known."""
        self._started = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get(_ID, "")
        self._id = given if _IDS.fullmatch(given) else uuid.uuid4().hex
        # Any client can send X-Forwarded-For: it is true only behind a proxy of ours.
        self._forwarded = headers.get("X-Forwarded-For", "")[:200] or None
        changed = (_ID.lower().encode(), b"cookie")
        others = [(name, value) for name, value in scope["headers"] if name not in changed]
        scope["headers"] = [*others, *_own_cookie(scope["headers"]), (_ID.lower().encode(), self._id.encode())]

    def signed(self, send: Send) -> Send:
        """Return a `send` that adds the headers that every answer has."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                headers.update({**_HEADERS, _ID: self._id})
                message = {**message, "headers": headers.raw}
            await send(message)

        return signed

    def once(self, send: Send) -> Send:
        """Return a `send` that removes the second copy of the id, which Ray's proxy adds."""

        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                headers[_ID] = self._id
                message = {**message, "headers": headers.raw}
            await send(message)

        return once

    def record(self, status: int, read: int) -> None:
        """Write the line of this request to the audit log. `read` is the number of bytes of its body."""
        client = self._scope.get("client")
        line: dict[str, Any] = {"request": self._id, "key": self.key, "client": client[0] if client else None}
        if self._forwarded:
            line["forwarded_for"] = self._forwarded
        path = self._scope["path"][:_PATH]
        line |= {"method": self._scope["method"], "path": path, "status": int(status), "bytes": read}
        line["ms"] = round((time.monotonic() - self._started) * 1000)
        if self.key is None and status >= HTTPStatus.BAD_REQUEST:
            _refusals.write(line)
        else:
            audit.info(json.dumps(line))


def _own_cookie(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return our own cookie only. Python parses quoted ones in quadratic time, and FastAPI parses all of them."""
    values = [value for sent in headers if sent[0] == b"cookie" for value in _OWN.findall(sent[1])]
    return [(b"cookie", COOKIE.encode() + b"=" + values[-1])] if values else []


class _Watched:
    """Counts the bytes read of a request, and notes the status of its answer; None before that begins."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.read = 0
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self.read += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class _Middleware(ABC):
    """An ASGI middleware for HTTP; other protocols pass through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        await (self._answer if scope["type"] == "http" else self._app)(scope, receive, send)

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class RequestLog(_Middleware):
    """Adds an id to requests and headers to answers, and writes the audit log."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = Named(scope)
        watched = _Watched(receive, named.signed(send))
        try:
            await self._app(scope, watched.receive, watched.send)
        finally:
            key = scope.get("state", {}).get("key")
            named.key = key.name if key else None
            named.record(watched.status or 500, watched.read)


class Metrics(_Middleware):
    """Counts and times answers, by endpoint."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        watched, began = _Watched(receive, send), time.monotonic()
        try:
            await self._app(scope, watched.receive, watched.send)
        finally:
            # Routes, not paths: ids would make a series of every triple.
            route = getattr(scope.get("route"), "path", "unknown")
            REQUESTS.labels(route, watched.status or 500).inc()
            SECONDS.labels(route).observe(time.monotonic() - began)


class BodyLimit(_Middleware):
    """Refuses bodies that are too large before they are read into memory."""

    def __init__(self, app: ASGIApp, most: int, larger: Mapping[str, int]) -> None:
        """Allow `most` bytes, and more for the paths in `larger`."""
        super().__init__(app)
        self._most, self._larger = most, larger

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        most, watched = self._larger.get(scope["path"], self._most), _Watched(receive, send)

        def refuse(size: int) -> None:
            if size > most:
                raise too_large(most)

        async def receive_some() -> Message:
            message = await watched.receive()
            refuse(watched.read)
            return message

        async def send_unless_refused(message: Message) -> None:
            # To FastAPI an error while reading a body is a malformed body, and it would answer 400.
            if watched.status or watched.read <= most:
                await watched.send(message)

        try:
            refuse(declared_bytes(scope))
            await self._app(scope, receive_some, send_unless_refused)
            refuse(watched.read)
        except Problem as problem:
            if not watched.status:
                await problem.response(scope["path"])(scope, receive, send)


def declared_bytes(scope: Scope) -> int:
    """Return the declared size of a body; 0 if there is none."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    # Python refuses to parse a number with thousands of leading zeros.
    return int(lengths[0].lstrip(b"0") or b"0") if lengths and lengths[0].isdigit() else 0
