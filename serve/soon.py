"""Pending `write=soon` rows: acknowledged first, then written to the lake with retries, or counted as lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import Counter, Gauge

from lake.errors import Refused, one_line
from lake.retry import Schedule, retry_async
from lake.tables import Rows
from serve.problems import busy

_MOST = 4096
"""Maximum number of pending rows: a lake that is unavailable must not fill the memory."""
_WHILE_SERVING = Schedule((0.5, 1, 2, 4, 8, 15), patience_s=600)
"""A forget of a large lake, or an outage of its store, may take minutes."""
_DRAIN_S = 10.0
"""For the writer to take what waits when the service ends; then it is written without that writer."""
_AT_THE_END = Schedule((1, 1, 1, 1))

PENDING = Gauge("worldlake_soon_pending_rows", "Labels acknowledged with write=soon that are not in the lake yet")
DROPPED = Counter("worldlake_soon_dropped_rows", "Labels acknowledged with write=soon that were never written")

log = logging.getLogger("serve.soon")


class Soon:
    """The pending rows of one ingress. They do not survive a kill of this process."""

    def __init__(self, write: Callable[[Rows], Awaitable[object]], write_here: Callable[[Rows], object] | None) -> None:
        """`write` asks the writer of the service; `write_here` blocks, and does without it once the service ends."""
        self._write, self._write_here = write, write_here
        self._tasks: dict[asyncio.Task[None], Rows] = {}

    def add(self, rows: Rows) -> None:
        """Add rows that are about to be acknowledged. Raises Problem if too many are pending."""
        waiting = sum(map(len, self._tasks.values()))
        if waiting + len(rows) > _MOST:
            raise busy("too many labels wait to be written", 5)
        task = asyncio.create_task(self._persist(rows))
        self._tasks[task] = rows
        PENDING.inc(len(rows))
        task.add_done_callback(self._ended)

    async def drain(self) -> None:
        """Write pending rows, because this process is about to end. Rows that cannot be written are counted as lost."""
        if not self._tasks:
            return
        await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        left = list(self._tasks.items())
        for task, _ in left:
            task.cancel()
        rows = [row for _, of_task in left for row in of_task]
        # Rows that a cancelled call has written after all are known by their ids.
        if rows and (write := self._write_here):
            await _written(rows, lambda: asyncio.to_thread(write, rows), _AT_THE_END)
        elif rows:
            _drop(rows, "the service has ended")

    async def _persist(self, rows: Rows) -> None:
        await _written(rows, lambda: self._write(rows), _WHILE_SERVING)

    def _ended(self, task: asyncio.Task[None]) -> None:
        PENDING.dec(len(self._tasks.pop(task)))


async def _written(rows: Rows, write: Callable[[], Awaitable[object]], schedule: Schedule) -> None:
    """Write rows, or count them as lost. Retries all errors but Refused, also those of Ray, which restarts writers."""
    try:
        await retry_async(write, schedule, lambda error: not isinstance(error, Refused), _warn)
    except Exception as error:
        _drop(rows, one_line(error))


def _warn(error: Exception, wait_s: float) -> None:
    log.warning("labels are not written yet, trying again in %g s: %s", wait_s, one_line(error))


def _drop(rows: Rows, why: str) -> None:
    DROPPED.inc(len(rows))
    log.error("%d labels that were acknowledged with write=soon are lost: %s", len(rows), why)
