"""A pool of processes for untrusted input, which can be killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lake.isolation import Isolated

Result = TypeVar("Result")

_LEFT_S = 0.5
"""Grace period before an abandoned call is killed: most end sooner, and starting a process costs more."""


class NoneFree(Exception):
    """No process was free in time."""


class Processes:
    """A few processes, each with one call at a time; calls wait for a free one.

    A lost process is restarted in the background, and is used again only when no other is free.
    """

    def __init__(
        self,
        processes: Sequence[Isolated],
        *,
        wait_s: float | None = None,
        share: int | None = None,
        kills: bool = False,
    ) -> None:
        """Make calls wait `wait_s` for a free process, and let one `asker` hold at most `share` of the processes.

        With `kills`, a call is killed when the task that waits for it is cancelled.
        """
        self._processes = processes
        self._wait_s, self._share, self._kills = wait_s, share or len(processes), kills
        # The one that was used last is taken first, so that as many run as were ever needed at once.
        self._free = list(processes)
        self._held: Counter[str] = Counter()
        self._waiting: list[asyncio.Future[None]] = []
        # Threads of their own, because all other reads share the default ones: for each process a call, and a start.
        self._threads = ThreadPoolExecutor(2 * len(processes))

    async def call(self, function: Callable[..., Result], *args: object, asker: str = "") -> Result:
        """Return `function(*args)`, computed in a process; raises what it raises, ChildLost, or NoneFree.

        Calls without an `asker` may hold all processes.
        """
        process = await self._take(asker)
        call = asyncio.ensure_future(self._run(process, asker, function, args))
        # Retrieved here, because an abandoned request does not.
        call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            # A thread cannot be cancelled. If its process were free before the call ends, the next request would get
            # the answer to this one.
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if self._kills:
                asyncio.get_running_loop().call_later(_LEFT_S, _kill_unless_done, process, call)
            raise

    async def start(self) -> None:
        """Start all processes before they are needed. One that cannot start now is started by its first call."""
        loop = asyncio.get_running_loop()
        starts = (loop.run_in_executor(self._threads, process.start) for process in self._processes)
        await asyncio.gather(*starts, return_exceptions=True)

    def close(self) -> None:
        """Stop all processes."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(wait=False)

    async def _take(self, asker: str) -> Isolated:
        try:
            async with asyncio.timeout(self._wait_s):
                while not self._free or (asker and self._held[asker] >= self._share):
                    await self._change()
        except TimeoutError:
            raise NoneFree from None
        self._held[asker] += 1
        return self._free.pop()

    async def _change(self) -> None:
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        try:
            await change
        finally:
            self._waiting.remove(change)

    async def _run(
        self, process: Isolated, asker: str, function: Callable[..., Result], args: Sequence[object]
    ) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, process.call, function, *args)
        finally:
            self._give_back(process, asker)

    def _give_back(self, process: Isolated, asker: str) -> None:
        if process.is_up:
            self._free.append(process)
        else:
            self._free.insert(0, process)
            self._threads.submit(process.start)
        self._held[asker] -= 1
        if not self._held[asker]:
            del self._held[asker]
        for change in self._waiting:
            if not change.done():
                change.set_result(None)


def _kill_unless_done(process: Isolated, call: asyncio.Future[Any]) -> None:
    if not call.done():
        process.kill()
