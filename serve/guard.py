"""Who is asking: keys, scopes and rates, as a dependency of every endpoint.

A program sends its key in a header. A browser that has signed in sends it in a cookie, which other sites could make it
send as well: `SameSite=Strict` forbids that, and so do we where the browser says who asks. Where nobody needs a key a
site could still let its own name lead to this machine: then the browser takes us for that site, and `Host` names it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import Request

from serve.keys import Bucket, Key, Keys, Scope, find
from serve.problems import Problem, busy

_READ_EVERY_S = 10.0
"""A key that was revoked is refused so much later at the latest."""

COOKIE = "worldlake_key"
"""Holds the key of a browser that has signed in."""

_HOLD_S = 300.0
"""Seconds for which keys hold that cannot be read again."""

LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names by which this machine calls itself."""

_SAFE = ("GET", "HEAD", "OPTIONS")
_ASK = {"WWW-Authenticate": 'Bearer realm="worldlake"'}

log = logging.getLogger("serve.guard")


class Guard:
    """Lets requests through. As long as a lake has no key, everybody who calls us by a name of `open_as` may do all."""

    def __init__(self, keys: Keys, *, open_as: Collection[str]) -> None:
        self._source, self._open_as = keys, open_as
        self._keys = keys.read()
        self._read_at = time.monotonic()
        self._unread_since = math.inf
        self._buckets: dict[str, Bucket] = {}

    def require(self, scope: Scope) -> Callable[[Request], Awaitable[None]]:
        """A dependency that raises Problem for requests whose key is missing, wrong, expired, under-scoped or busy."""

        async def check(request: Request) -> None:
            authorization = request.headers.get("Authorization", "")
            if not authorization:
                refuse_other_sites(request)
            if not await self.is_open(request):
                self._refuse_other_names()
                request.state.key = key = self._key(_token(authorization, request.cookies.get(COOKIE)))
                if not key.may(scope):
                    raise Problem(HTTPStatus.FORBIDDEN, "scope", f"this needs a key with the scope {scope}")
                self._take(key)

        return check

    async def is_open(self, request: Request) -> bool:
        """Whether nobody needs a key, and the request calls us by a name for which that holds."""
        await self._read_again()
        name = re.sub(r":\d*$", "", request.headers.get("Host", ""))
        return not self._keys and name.lower() in self._open_as

    def _refuse_other_names(self) -> None:
        if self._open_as and not self._keys:
            names = ", ".join(self._open_as)
            detail = f"without keys this answers to {names} only: worldlake keys create NAME --scope read --lake LAKE"
            raise Problem(HTTPStatus.FORBIDDEN, "host", detail)

    async def sign_in(self, request: Request, token: str) -> None:
        """Check the key that a person types in. Raises Problem where it is none, or asks too often."""
        refuse_other_sites(request)
        await self._read_again()
        request.state.key = self._key(token.strip())
        self._take(request.state.key)

    def _key(self, token: str) -> Key:
        key = find(self._keys, token)
        if key is None or (key.expires_at is not None and key.expires_at <= dt.datetime.now(dt.UTC)):
            # One answer for all of these: it tells nobody which keys exist.
            raise Problem(HTTPStatus.UNAUTHORIZED, "key", "this key is not valid: ask for a new one", _ASK)
        return key

    def _take(self, key: Key) -> None:
        now = time.monotonic()
        bucket = self._buckets.setdefault(key.key_id, Bucket(key.per_minute, float(key.per_minute), now))
        if wait := bucket.take(now):
            after = {"Retry-After": f"{max(1, round(wait + 0.5))}"}
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS, "rate", f"this key may ask {key.per_minute} times a minute", after
            )

    async def _read_again(self) -> None:
        if time.monotonic() - self._read_at > _READ_EVERY_S:
            # First, so that other requests do not all read as well while this takes its time.
            self._read_at, began = math.inf, time.monotonic()
            try:
                self._keys = await asyncio.to_thread(self._source.read)
                self._unread_since = math.inf
            except Exception as error:
                # The request has no part in it, so what was read last holds; but a key that was revoked not for ever.
                log.warning("keys cannot be read, those read before hold for a while: %s", error)
                self._unread_since = min(self._unread_since, began)
            finally:
                self._read_at = time.monotonic()
        if time.monotonic() - self._unread_since > _HOLD_S:
            raise busy("the keys of this service cannot be read", _READ_EVERY_S)


def refuse_other_sites(request: Request) -> None:
    """Raise Problem for a request that changes or costs something and that a page of another site has sent."""
    if request.method in _SAFE:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    # Browsers leave the first one out where a page came over plain HTTP from another machine.
    is_ours = (
        site == "same-origin" if site else origin is None or urlsplit(origin).netloc == request.headers.get("Host")
    )
    if not is_ours:
        raise Problem(HTTPStatus.FORBIDDEN, "cross-site", "this came from a page of another site: it needs a key")


def _token(authorization: str, cookie: str | None) -> str:
    if not authorization and cookie is None:
        raise Problem(HTTPStatus.UNAUTHORIZED, "no-key", "send a key: `Authorization: Bearer wl_...`", _ASK)
    kind, _, token = authorization.partition(" ")
    if authorization:
        return token.strip() if kind.lower() == "bearer" else ""
    return cookie or ""
