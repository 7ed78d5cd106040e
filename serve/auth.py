"""Authentication: keys, scopes, and rates, checked from the headers of a request before any of its body is read.

A program sends its key in a header. A browser that has signed in sends it in a cookie, which other sites could make it
send as well: `SameSite=Strict` forbids that, and so do we where the browser says which site asks.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from serve.keys import Bucket, Key, Keys, Scope, find
from serve.problems import Problem, busy

_READ_EVERY_S = 4.0
"""A proxy asks the service as seldom, so that a new or a revoked key is known everywhere within ten seconds."""
_WAIT_S = 1.0
"""For keys that are being read again; after that those read before decide."""
_HOLD_S = 300.0
"""Seconds for which keys hold that cannot be read again."""
_SESSION_PER_MINUTE = 1_000_000
"""The person who starts a service limits nobody else by asking it often."""

COOKIE = "worldlake_key"
"""Holds the key of a browser that has signed in."""

# For the OpenAPI document: `Authentication` has looked at the key before a route is found.
_Sent = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(scheme_name="key", auto_error=False))]
_SAFE = ("GET", "HEAD")
_ASK = {"WWW-Authenticate": 'Bearer realm="worldlake"'}

log = logging.getLogger("serve.auth")


class KeyRing:
    """Keys, read again every few seconds; those read last stay valid for a while when they cannot be read."""

    def __init__(self, read: Callable[[], list[Key]]) -> None:
        """`read` may block: it runs on a thread of its own, so that busy reads of the lake do not delay it."""
        self._read = read
        self._keys: list[Key] = []
        self._read_at = self._held_from = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")

    async def keys(self) -> list[Key]:
        """Return the keys. Raises Problem if they could not be read for too long."""
        if time.monotonic() - self._read_at > _READ_EVERY_S:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_again())
            await asyncio.wait({self._reading}, timeout=_WAIT_S)
        if time.monotonic() - self._held_from > _HOLD_S:
            raise busy("the keys of this service cannot be read", 5)
        return self._keys

    def read_now(self) -> None:
        """Read the keys and wait for them. Raises what reading raises."""
        self._keys = self._read()
        self._read_at = self._held_from = time.monotonic()

    async def _read_again(self) -> None:
        began = time.monotonic()
        try:
            self._keys = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
            self._held_from = began
        except Exception as error:
            # The request has no part in it, so what was read last holds; but a revoked key must not hold forever.
            log.warning("keys cannot be read, those read before hold for a while: %s", error)
        finally:
            self._read_at, self._reading = time.monotonic(), None


class Guard:
    """Admits requests that have a valid key. Until a lake has its first key, `session` is the only valid one."""

    def __init__(self, keys: Keys, session: Key | None) -> None:
        """`session` is the key of this run of the service, which prints its token. None if others can reach it."""
        self._keys, self._session = keys, session
        self._ring = KeyRing(self._read)
        self._buckets: dict[str, Bucket] = {}
        # A file that holds no keys stops a service from starting; one that breaks later does not end it.
        self._ring.read_now()

    def _read(self) -> list[Key]:
        keys = self._keys.read()
        if keys:
            # Permanently, so that revoking the last key gives no one access.
            self._session = None
        return keys or ([self._session] if self._session else [])

    async def keys(self) -> list[Key]:
        """Return the valid keys; see `KeyRing.keys`."""
        return await self._ring.keys()

    async def admit(self, headers: Headers) -> Key:
        """Return the key of a request. Raises Problem if it has none or an invalid one, or exceeds its rate."""
        key = key_of(await self.keys(), headers)
        self._take(key)
        return key

    async def sign_in(self, request: Request, token: str) -> None:
        """Check the key that a person enters or that is in an address. Raises Problem as `admit` does."""
        request.state.key = _valid(await self.keys(), token.strip())
        self._take(request.state.key)

    def require(self, scope: Scope) -> Callable[..., Awaitable[None]]:
        """Return a dependency that raises Problem for requests whose key lacks a scope."""

        async def check(request: Request, _: _Sent) -> None:
            if not request.state.key.may(scope):
                raise Problem(HTTPStatus.FORBIDDEN, "scope", f"this needs a key with the scope {scope}")

        return check

    def _take(self, key: Key) -> None:
        now = time.monotonic()
        bucket = self._buckets.setdefault(key.key_id, Bucket(key.per_minute, float(key.per_minute), now))
        if wait := bucket.take(now):
            after = {"Retry-After": f"{max(1, round(wait + 0.5))}"}
            detail = f"rate limit of {key.per_minute} requests per minute exceeded"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "rate", detail, after)


class Authentication:
    """An ASGI middleware that refuses requests without a valid key, and puts the key into `state`."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it before its body is read."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                refuse_other_sites(scope["method"], scope["path"], headers)
                if needs_key(scope["path"]):
                    scope.setdefault("state", {})["key"] = await self._guard.admit(headers)
            except Problem as problem:
                await problem.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def session_key() -> tuple[Key, str]:
    """Return a key with all scopes for one run of a service whose lake has none, and its token. It is not stored."""
    secret, key_id = secrets.token_urlsafe(32), secrets.token_hex(6)
    key = Key(
        key_id=key_id,
        name="session",
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        scopes=("admin",),
        per_minute=_SESSION_PER_MINUTE,
        created_at=dt.datetime.now(dt.UTC),
    )
    return key, f"wl_{key_id}_{secret}"


def needs_key(path: str) -> bool:
    """Return whether a path needs a key: the API does, pages and health checks do not."""
    return path.startswith("/v1/")


def key_of(keys: list[Key], headers: Headers) -> Key:
    """Return the key of a request from its headers. Raises Problem if it has none or an invalid one."""
    authorization = headers.get("Authorization", "")
    cookie = HTTPConnection({"type": "http", "headers": headers.raw}).cookies.get(COOKIE)
    if not authorization and cookie is None:
        raise Problem(HTTPStatus.UNAUTHORIZED, "no-key", "send a key: `Authorization: Bearer wl_...`", _ASK)
    kind, _, token = authorization.partition(" ")
    if authorization:
        return _valid(keys, token.strip() if kind.lower() == "bearer" else "")
    return _valid(keys, cookie or "")


def _valid(keys: list[Key], token: str) -> Key:
    key = find(keys, token)
    if key is None or (key.expires_at is not None and key.expires_at <= dt.datetime.now(dt.UTC)):
        # One answer for all of these: it tells nobody which keys exist.
        raise Problem(HTTPStatus.UNAUTHORIZED, "key", "this key is not valid: ask for a new one", _ASK)
    return key


def refuse_other_sites(method: str, path: str, headers: Headers) -> None:
    """Raise Problem for requests that a page of another site makes a browser send, whatever the method.

    Paths that need no key may be opened from anywhere. Browsers never add a key in a header, so that is allowed too.
    """
    if "Authorization" in headers:
        return
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    # Browsers leave the first one out where a page came over plain HTTP from another machine.
    is_ours = site in ("same-origin", "none") if site else origin is None or _is_of(origin, headers.get("Host"))
    is_opened = (headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")) == ("navigate", "document")
    if not is_ours and not (is_opened and method in _SAFE and not needs_key(path)):
        raise Problem(HTTPStatus.FORBIDDEN, "cross-site", "this came from a page of another site: it needs a key")


def _is_of(origin: str, host: str | None) -> bool:
    try:
        return bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        # An invalid address, such as `http://[`, is not of this site.
        return False
