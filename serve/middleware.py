"""Around every request: the size of its body, headers for browsers, a line in the audit log, and metrics."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem

audit = logging.getLogger("serve.audit")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REQUESTS = Counter("worldlake_requests_total", "Requests by endpoint and status", ("route", "status"))
SECONDS = Histogram("worldlake_request_seconds", "Time to answer by endpoint", ("route",))


class _BodyTooLarge(Exception):
    pass


class Envelope:
    """An ASGI middleware. It sees bytes, so that nothing is read into memory before its size is known to be allowed."""

    def __init__(self, app: ASGIApp, body_bytes: int, larger: Mapping[str, int]) -> None:
        """`larger`: by path, what may have more bytes than `body_bytes`."""
        self._app, self._default, self._larger = app, body_bytes, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._larger.get(scope["path"], self._default)
        started, status, read = time.monotonic(), 500, 0
        has_begun = False
        request_id = uuid.uuid4().hex

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise _BodyTooLarge
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                extra = {**_HEADERS, "X-Request-Id": request_id}
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        try:
            if _declared(scope) > most:
                raise _BodyTooLarge
            await self._app(scope, receive_counted, send_with_headers)
        except _BodyTooLarge:
            if not has_begun:
                problem = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body", f"a request has at most {most:,} bytes")
                await problem.response(scope["path"])(scope, receive, send_with_headers)
        finally:
            taken = time.monotonic() - started
            # Routes, not paths: ids would make a series of every triple.
            route = getattr(scope.get("route"), "path", "unknown")
            REQUESTS.labels(route, status).inc()
            SECONDS.labels(route).observe(taken)
            key = scope.get("state", {}).get("key")
            audit.info(
                json.dumps(
                    {"request": request_id, "key": key.name if key else None, "method": scope["method"]}
                    | {"path": scope["path"], "status": status, "bytes": read, "ms": round(taken * 1000)}
                )
            )


def _declared(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0
