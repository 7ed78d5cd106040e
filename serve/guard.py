"""Who is asking: bearer keys, scopes and rates, as a dependency of every endpoint."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import Request

from serve.keys import Bucket, Key, Keys, Scope, find
from serve.problems import Problem

_READ_EVERY_S = 10.0
"""A key that was revoked is refused so much later at the latest."""

_ASK = {"WWW-Authenticate": 'Bearer realm="worldlake"'}


class Guard:
    """Lets requests through. Where `open_without_keys`, as long as a lake has no key everybody may do everything."""

    def __init__(self, keys: Keys, *, open_without_keys: bool) -> None:
        self._source, self._open = keys, open_without_keys
        self._keys = keys.read()
        self._read_at = time.monotonic()
        self._buckets: dict[str, Bucket] = {}

    def require(self, scope: Scope) -> Callable[[Request], Awaitable[None]]:
        """A dependency that raises Problem for requests whose key is missing, wrong, expired, under-scoped or busy."""

        async def check(request: Request) -> None:
            await self._read_again()
            if self._keys or not self._open:
                request.state.key = self._admit(request.headers.get("Authorization", ""), scope)

        return check

    def _admit(self, authorization: str, scope: Scope) -> Key:
        kind, _, token = authorization.partition(" ")
        if not authorization:
            raise Problem(HTTPStatus.UNAUTHORIZED, "no-key", "send a key: `Authorization: Bearer wl_...`", _ASK)
        key = find(self._keys, token.strip()) if kind.lower() == "bearer" else None
        if key is None or (key.expires_at is not None and key.expires_at <= dt.datetime.now(dt.UTC)):
            # One answer for all of these: it tells nobody which keys exist.
            raise Problem(HTTPStatus.UNAUTHORIZED, "key", "this key is not valid: ask for a new one", _ASK)
        if not key.may(scope):
            raise Problem(HTTPStatus.FORBIDDEN, "scope", f"this needs a key with the scope {scope}")
        now = time.monotonic()
        bucket = self._buckets.setdefault(key.key_id, Bucket(key.per_minute, float(key.per_minute), now))
        if wait := bucket.take(now):
            after = {"Retry-After": f"{max(1, round(wait + 0.5))}"}
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS, "rate", f"this key may ask {key.per_minute} times a minute", after
            )
        return key

    async def _read_again(self) -> None:
        if time.monotonic() - self._read_at > _READ_EVERY_S:
            # First, so that other requests do not all read as well.
            self._read_at = time.monotonic()
            self._keys = await asyncio.to_thread(self._source.read)
