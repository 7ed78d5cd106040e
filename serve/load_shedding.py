"""Load shedding in Ray Serve's proxies: requests that are refused or too slow cost the service nothing.

Everything here is decided from headers alone, and an ingress gets complete bodies only. A request that reaches an
ingress costs ten times as much as this.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import connections, flow, pace
from serve.auth import KeyRing, key_of, needs_key, refuse_other_sites
from serve.keys import Key
from serve.limits import QUEUE, Limits
from serve.middleware import Named, audit_to_output, declared_bytes
from serve.problems import Problem, busy, too_large
from serve.shared import Shared

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    # Settings import torch, which a proxy has no use for.
    from serve.settings import ServeSettings

NAME, INGRESS = "worldlake", "Ingress"
"""Of the application in Ray Serve, and of the deployment in it that answers HTTP."""
READS = 32
"""Requests of one key at once that read the lake: each takes a thread of the ingress, of which there are few."""
ANONYMOUS = 32
"""Requests at once that need no key: pages, signing in."""
_OF_MODELS = ("/v1/label", "/v1/predict", *flow.STREAMED)
_SHARED = ("/healthz", "/readyz", "/metrics")
"""Always answered, without a place: the ingress is asked once at a time, and all who ask get its answer."""
_OF_RAY = ("/-/healthz", "/-/routes")
_SHARED_S = 10.0
"""For the ingress to answer one of them."""
_ANONYMOUS_BYTES = 8 << 10
"""Of a body that needs no key: a form with a key in it."""
_BUFFERED_BYTES = 128 << 20
"""Of all bodies that are received or worked on. One of images has a few MiB."""

_AT_ONCE = "WORLDLAKE_AT_ONCE"
_DEFAULT = "256"
"""As `at_once` says of default settings."""


def environment(settings: ServeSettings) -> dict[str, str]:
    """Return the environment in which Ray must be started for its proxies to shed load."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.load_shedding:middlewares",
        _AT_ONCE: str(at_once(settings)),
    }


def at_once(settings: ServeSettings) -> int:
    """Return how many requests of one key a service processes or queues at the same time."""
    return QUEUE * settings.replicas[1]


def with_others(one: int) -> int:
    """Return the total for all keys, given the limit of one key, so that others always have room."""
    return one + one // 4


def middlewares() -> list[Middleware]:
    """Return the middlewares of a proxy."""
    connections.install()
    audit_to_output()
    return [Middleware(Admission, at_once=int(os.environ.get(_AT_ONCE, _DEFAULT)), read_keys=_keys_of_the_service)]


def _keys_of_the_service() -> list[Key]:
    keys: list[Key] = _asking_for_keys().remote().result(timeout_s=5)
    return keys


@cache
def _asking_for_keys() -> DeploymentHandle[Any]:
    """Return one handle for the life of a proxy: what a handle creates stays when it is dropped."""
    from ray.serve.handle import DeploymentHandle

    return DeploymentHandle(INGRESS, NAME).keys


class Shares:
    """Slots, of which no key may take all."""

    def __init__(self, of_one: int, of_all: int) -> None:
        self._of_one, self._free = of_one, of_all
        self._taken: Counter[str] = Counter()

    @contextmanager
    def held(self, who: str, refusal: str) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes slots up to a number; they are released at the end of the block."""
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if count > held:
                self._take(who, count - held, refusal)
                held = count

        try:
            yield hold
        finally:
            self._free += held
            self._taken[who] -= held
            if not self._taken[who]:
                del self._taken[who]

    def _take(self, who: str, count: int, refusal: str) -> None:
        if count > self._free or self._taken[who] + count > self._of_one:
            raise busy(refusal)
        self._free -= count
        self._taken[who] += count


class Admission:
    """An ASGI middleware: checks the key, takes a slot, reads the body. Health checks always pass."""

    def __init__(
        self, app: ASGIApp, at_once: int, read_keys: Callable[[], list[Key]], limits: Limits | None = None
    ) -> None:
        """`read_keys` may block; `at_once` is the limit of one key."""
        self._app, self._limits = app, limits or Limits()
        self._ring = KeyRing(read_keys)
        self._places = Shares(at_once, with_others(at_once))
        self._reads = Shares(READS, 4 * READS)
        self._anonymous = Shares(ANONYMOUS, ANONYMOUS)
        self._bytes = Shares(_BUFFERED_BYTES * 4 // 5, _BUFFERED_BYTES)
        self._shared: dict[str, Shared[list[Message]]] = {path: Shared() for path in _SHARED}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            # Other protocols are not served, and would occupy a replica.
            await send({"type": "websocket.close"})
            return
        named = Named(scope)
        paced = pace.Paced(receive, named.once(send))
        try:
            await self._admit(scope, paced, named, send)
        except Problem as problem:
            if paced.has_begun:
                connections.abort(send)
            else:
                await problem.response(scope["path"])(scope, receive, named.signed(paced.send))
                named.record(problem.status, paced.read)
        except pace.Left:
            connections.abort(send)

    async def _admit(self, scope: Scope, paced: pace.Paced, named: Named, send: Send) -> None:
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        if path in _OF_RAY:
            await self._answer(scope, _given(b""), paced.send)
            return
        refuse_other_sites(method, path, headers)
        if path in _SHARED and method == "GET":
            for message in await self._shared[path].get(lambda: self._ask(scope)):
                await paced.send(message)
            return
        if needs_key(path):
            key = key_of(await self._ring.keys(), headers)
            named.key = key.name
            connections.admit(send)
            await self._admit_key(key.key_id, scope, paced)
            return
        # Read without a place, so that slow ones do not keep others out.
        body = await _body(scope, paced, _ANONYMOUS_BYTES) if method == "POST" else b""
        with self._anonymous.held("", "too many visitors at once") as hold:
            hold(1)
            answer = await self._whole(scope, body)
        # Pages and scripts are small. Sent without a place, so that slow readers do not keep others out either.
        for message in answer:
            await paced.send(message)

    async def _ask(self, scope: Scope) -> list[Message]:
        # Nothing of the one who happens to ask first decides what others get.
        headers = [(name, value) for name, value in scope["headers"] if name in (b"host", b"x-request-id")]
        try:
            async with asyncio.timeout(_SHARED_S):
                return await self._whole({**scope, "headers": headers, "query_string": b""}, b"")
        except TimeoutError:
            raise busy("the service does not answer", 5) from None

    async def _whole(self, scope: Scope, body: bytes) -> list[Message]:
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._answer(scope, _given(body), keep)
        return answer

    async def _admit_key(self, who: str, scope: Scope, paced: pace.Paced) -> None:
        places = self._places if scope["path"] in _OF_MODELS else self._reads
        with places.held(who, "too many requests at once") as hold:
            hold(1)
            if scope["path"] in flow.STREAMED:
                await self._stream(scope, paced)
                return
            with self._bytes.held(who, "too many large requests at once") as hold_bytes:
                body = await _body(scope, paced, self._limits.body_bytes, hold_bytes)
                await self._answer(scope, _given(body, paced.receive), paced.send)

    async def _stream(self, scope: Scope, paced: pace.Paced) -> None:
        _limit(scope, paced, self._limits.video_bytes)
        gate = flow.Gate(paced.receive)

        async def send(message: Message) -> None:
            if message["type"] == flow.READ:
                gate.grant(message)
            else:
                await paced.send(message, gate.report)

        extended = {**scope, "extensions": {**scope.get("extensions", {}), flow.EXTENSION: {}}}
        answering = asyncio.create_task(self._answer(extended, gate.receive, send))
        pumping = asyncio.create_task(gate.pump())
        try:
            done, _ = await asyncio.wait({answering, pumping}, return_when=asyncio.FIRST_COMPLETED)
            if pumping in done:
                await pumping
            await answering
        finally:
            answering.cancel()
            pumping.cancel()
            await asyncio.gather(answering, pumping, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = is_nowhere = False

        async def begin(message: Message) -> None:
            nonlocal has_begun, is_nowhere
            if message["type"] == flow.READ:
                await send(message)
                return
            is_nowhere = is_nowhere or _is_nowhere(message)
            if not is_nowhere:
                has_begun = True
                await send(message)

        try:
            await self._app(scope, receive, begin)
        except (pace.Left, Problem):
            raise
        except Exception:
            if has_begun:
                raise
        # When an ingress dies Ray Serve raises, or says nothing at all.
        if not has_begun:
            raise busy("the service is being started", 5)


def _limit(scope: Scope, paced: pace.Paced, most: int) -> int:
    """Limit the size of a body; returns its declared size. Raises Problem if that is larger."""
    if (declared := declared_bytes(scope)) > most:
        raise too_large(most)
    paced.most = most
    return declared


async def _body(scope: Scope, paced: pace.Paced, most: int, hold: Callable[[int], None] = lambda size: None) -> bytes:
    """Return the whole body. Calls `hold` with its size before it is read, and raises what that raises."""
    hold(_limit(scope, paced, most))
    parts: list[bytes] = []
    size, has_more = 0, True
    while has_more:
        message = await paced.receive()
        if message["type"] == "http.disconnect":
            raise pace.Left
        parts.append(message.get("body", b""))
        has_more = message.get("more_body", False)
        size += len(parts[-1])
        hold(size)
    return b"".join(parts)


def _given(body: bytes, receive: Receive | None = None) -> Receive:
    """Return a `receive` with this body, then that of `receive`; without one, nothing more is read of the client."""
    is_given = False

    async def given() -> Message:
        nonlocal is_given
        if not is_given:
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await (receive() if receive else asyncio.Future())

    return given


def _is_nowhere(message: Message) -> bool:
    """Return whether this is the answer of a proxy that has no application yet, or no longer has one.

    Clients take its 404 as final; a 404 of the application is a problem document.
    """
    kind: bytes = dict(message.get("headers", [])).get(b"content-type", b"")
    return message.get("status") == 404 and not kind.startswith(b"application/problem+json")
