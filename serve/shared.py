"""Answers to concurrent requests, computed once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

KEPT_S = 1.0
"""How long an answer is shared."""


class Shared(Generic[Result]):
    """One answer, or error, for all requests that come while it is computed or shortly after."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Result] | None = None
        self._began = -math.inf

    async def get(self, compute: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return what `compute` returned a moment ago, or returns now. Raises what it raises."""
        if self._task is None or (self._task.done() and time.monotonic() - self._began > KEPT_S):
            self._began = time.monotonic()
            self._task = asyncio.create_task(compute())
        task = self._task
        if not task.done():
            # Not awaited itself: who leaves must not cancel it for the others.
            await asyncio.wait({task})
        if error := task.exception():
            # Raised for each of many, it would grow by a traceback each time.
            raise error.with_traceback(None)
        return task.result()
