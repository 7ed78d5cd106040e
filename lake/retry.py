"""Repeating a call whose error may pass. Schedules are data; one loop follows them, in threads and in coroutines."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
MayPass = Callable[[Exception], bool]
"""Returns whether another attempt may succeed after an error. It may raise another error in its place."""
OnWait = Callable[[Exception, float], object]
"""Called before every wait, with the error and the seconds."""

_LONGEST_WAIT_S = 60.0
"""However long a service asks to be left alone."""


@dataclass(frozen=True)
class Schedule:
    """Seconds to wait between attempts. With `patience_s` the last wait repeats until that much time has passed.

    With `jitter` a wait is cut by up to half, so that many processes do not ask a store at the same moment.
    """

    waits: tuple[float, ...]
    patience_s: float | None = None
    jitter: bool = False

    def begin(self) -> Iterator[float]:
        """Return the waits; the patience runs from now on."""
        return self._until(time.monotonic() + (math.inf if self.patience_s is None else self.patience_s))

    def _until(self, end: float) -> Iterator[float]:
        more = itertools.repeat(self.waits[-1]) if self.patience_s is not None else ()
        for wait_s in itertools.chain(self.waits, more):
            if time.monotonic() > end:
                return
            yield wait_s * random.uniform(0.5, 1.0) if self.jitter else wait_s  # noqa: S311


def retry(
    function: Callable[[], T],
    schedule: Schedule,
    may_pass: MayPass,
    on_wait: OnWait = lambda error, wait_s: None,
) -> T:
    """Return what the function returns, calling it again while its error may pass and the schedule has a wait.

    An error with a `retry_after_s` is waited for at least that long. Raises the last error.
    """
    waits = schedule.begin()
    while True:
        try:
            return function()
        except Exception as error:
            wait_s = _wait(error, waits, may_pass)
            if wait_s is None:
                raise
            on_wait(error, wait_s)
        time.sleep(wait_s)


async def retry_async(
    function: Callable[[], Awaitable[T]],
    schedule: Schedule,
    may_pass: MayPass,
    on_wait: OnWait = lambda error, wait_s: None,
) -> T:
    """As `retry`, without holding up the event loop."""
    waits = schedule.begin()
    while True:
        try:
            return await function()
        except Exception as error:
            wait_s = _wait(error, waits, may_pass)
            if wait_s is None:
                raise
            on_wait(error, wait_s)
        await asyncio.sleep(wait_s)


def _wait(error: Exception, waits: Iterator[float], may_pass: MayPass) -> float | None:
    """Seconds until the next attempt; None where there is none."""
    wait_s = next(waits, None) if may_pass(error) else None
    return None if wait_s is None else max(wait_s, getattr(error, "retry_after_s", 0.0))


def seconds_asked(retry_after: str | None) -> float:
    """Return the seconds, 60 at most, that a `Retry-After` header asks for; 0 where there is none, or it is a date."""
    return min(float(retry_after), _LONGEST_WAIT_S) if retry_after and retry_after.isdecimal() else 0.0
