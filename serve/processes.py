"""Work on what a request brings along, in processes that can be killed when it is too much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from lake.isolation import Isolated

Result = TypeVar("Result")


class Processes:
    """A few processes, each with one call at a time; a call waits for a free one."""

    def __init__(self, count: int, timeout_s: float, memory_bytes: int, wait_s: float | None = None) -> None:
        """`timeout_s` and `memory_bytes` are of each process, see `Isolated`; a call waits `wait_s` for a free one."""
        self._wait_s = wait_s
        # One starts with its first call, so that as many run as were ever needed at once.
        self._processes = [Isolated(timeout_s, memory_bytes) for _ in range(count)]
        self._free: asyncio.LifoQueue[Isolated] = asyncio.LifoQueue()
        for process in self._processes:
            self._free.put_nowait(process)

    async def call(self, function: Callable[..., Result], *args: object) -> Result:
        """Return `function(*args)`, computed in a process; raises what it raises, ChildLost, or TimeoutError."""
        async with asyncio.timeout(self._wait_s):
            process = await self._free.get()
        call = asyncio.ensure_future(asyncio.to_thread(process.call, function, *args))

        def free(call: asyncio.Future[Result]) -> None:
            self._free.put_nowait(process)
            # Asked for, because a request that was given up does not.
            call.exception()

        call.add_done_callback(free)
        # A thread cannot be cancelled: a process that were free before its call ends would answer the next request
        # with what this one asked.
        return await asyncio.shield(call)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.close()
