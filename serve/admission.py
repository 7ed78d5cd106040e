"""At the door, in Ray Serve's proxies: what is more than can wait is refused before any of it is read.

A request that gets as far as an ingress costs ten times as much as this, so that a service that is asked for much more
than it can do would be busy with refusing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import busy

if TYPE_CHECKING:
    # Settings import torch, which a proxy has no use for.
    from serve.settings import ServeSettings

_AT_ONCE = "WORLDLAKE_AT_ONCE"
_DEFAULT = "256"
"""As `at_once` says of default settings."""


def environment(settings: ServeSettings) -> dict[str, str]:
    """What Ray has to be started with, for its proxies to refuse."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.admission:middlewares",
        _AT_ONCE: str(at_once(settings)),
    }


def at_once(settings: ServeSettings) -> int:
    """Requests that a service works on, or lets wait, at the same time."""
    return settings.queue * settings.replicas[1]


def middlewares() -> list[Middleware]:
    """What a proxy puts around everything that it serves."""
    return [Middleware(Admission, at_once=int(os.environ.get(_AT_ONCE, _DEFAULT)))]


class Admission:
    """An ASGI middleware that lets so many requests in at once. Whether a service is well can always be asked."""

    def __init__(self, app: ASGIApp, at_once: int) -> None:
        self._app, self._free = app, at_once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
        elif self._free == 0:
            await busy("too many requests at once").response(scope["path"])(scope, receive, send)
        else:
            self._free -= 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._free += 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = is_nowhere = False

        async def begin(message: Message) -> None:
            nonlocal has_begun, is_nowhere
            is_nowhere = is_nowhere or _is_nowhere(message)
            if not is_nowhere:
                has_begun = True
                await send(message)

        try:
            await self._app(scope, receive, begin)
        except Exception:
            if has_begun:
                raise
        # When an ingress dies Ray Serve raises, or says nothing at all.
        if not has_begun:
            await busy("the service is being started", 5).response(scope["path"])(scope, receive, send)


def _is_nowhere(message: Message) -> bool:
    """Whether this begins the answer of a proxy that knows no application yet, or any more.

    It answers 404, which a client takes for the last word; those of the application are problem documents.
    """
    kind: bytes = dict(message.get("headers", [])).get(b"content-type", b"")
    return message.get("status") == 404 and not kind.startswith(b"application/problem+json")
