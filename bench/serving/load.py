"""Clients of a service: N at once, each with one request at a time, or as they come by chance."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

GIVE_UP_S = 60.0
"""Twice what a service takes at most; a request without an answer by then has none."""

REFUSED = (429, 503)


@dataclass(frozen=True)
class Sample:
    """A request. `sent_s` is when it was meant to be sent, from the start; `latency_s` counts from then."""

    sent_s: float
    latency_s: float
    status: int
    """0: no answer."""
    may_come_back: bool = False
    """It has Retry-After."""
    problem: str = ""
    """Of an answer that is none: its content type and the start of its body, or the error."""


@dataclass
class Load:
    """Sends bodies to a URL in turn and keeps what became of each request."""

    url: str
    bodies: Sequence[bytes]
    samples: list[Sample] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)
    """Set: clients send nothing more."""
    key: str | None = None
    """Bearer key of a service that wants one."""
    _count: int = 0

    async def closed(self, clients: int, seconds: float) -> None:
        """`clients` at once, each with one request at a time, until `seconds` are over."""
        async with _session() as session:
            begun = time.monotonic()

            async def client() -> None:
                while (now := time.monotonic()) < begun + seconds and not self.ends.is_set():
                    # A client that is told to come back later does.
                    await asyncio.sleep(await self._ask(session, begun, now))

            await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, per_s: float, seconds: float, seed: int = 0) -> None:
        """Requests at random moments, `per_s` a second on average, whatever becomes of those before them."""
        rng, due = random.Random(seed), 0.0
        async with _session() as session, asyncio.TaskGroup() as tasks:
            begun = time.monotonic()
            while (due := due + rng.expovariate(per_s)) < seconds:
                await asyncio.sleep(begun + due - time.monotonic())
                # From when it was due: a generator that is late would hide what its requests wait for.
                tasks.create_task(self._ask(session, begun, begun + due))

    async def _ask(self, session: aiohttp.ClientSession, begun: float, due: float) -> float:
        """Returns the seconds to wait before the next."""
        body = self.bodies[self._count % len(self.bodies)]
        self._count += 1
        wait, problem = None, ""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            async with session.post(self.url, data=body, headers=headers) as answer:
                content, status = await answer.read(), answer.status
                wait = answer.headers.get("Retry-After")
                if status != 200:
                    problem = f"{answer.content_type}: {content[:300].decode(errors='replace')}"
        except (aiohttp.ClientError, TimeoutError) as error:
            status, problem = 0, repr(error)
        self.samples.append(Sample(due - begun, time.monotonic() - due, status, wait is not None, problem))
        # Where nobody listens a client that does not wait asks a thousand times a second.
        return float(wait or (0 if status else 0.5))


def _session() -> aiohttp.ClientSession:
    # As many connections as requests: the generator itself lets nobody wait.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=GIVE_UP_S)
    )


def summary(samples: Sequence[Sample], begin_s: float, end_s: float) -> dict[str, Any]:
    """Figures of the requests that were sent from `begin_s` to `end_s`; answers count as done when they come."""
    sent = [one for one in samples if begin_s <= one.sent_s < end_s]
    done = [one for one in samples if one.status == 200 and begin_s <= one.sent_s + one.latency_s < end_s]
    refused = [one for one in sent if one.status in REFUSED]
    return {
        "sent": len(sent),
        "answered": sum(one.status == 200 for one in sent),
        "refused": len(refused),
        "refused_without_retry_after": sum(not one.may_come_back for one in refused),
        "failed": sum(one.status not in (200, *REFUSED) for one in sent),
        "per_s": len(done) / (end_s - begin_s) if end_s > begin_s else 0.0,
        "ms": _percentiles([one.latency_s for one in sent if one.status == 200]),
        "refusal_ms": _percentiles([one.latency_s for one in refused]),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    found = np.percentile(np.array(seconds) * 1000, (50, 95, 99))
    return {name: round(float(value), 1) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}
