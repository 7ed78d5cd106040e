"""Labels that are acknowledged before they are in the lake (`?write=soon`): written with patience, or counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from prometheus_client import Counter, Gauge

from lake.errors import Refused, one_line
from serve.problems import busy
from serve.replicas import Rows

_MOST = 4096
"""Rows that wait: a lake that is away must not fill the memory."""
_PATIENCE_S = 600.0
"""A forget of a large lake, or an outage of its store, may take minutes."""
_FIRST_DELAY_S = 0.5
_LAST_DELAY_S = 15.0
_DRAIN_S = 10.0
"""For the writer to take what waits when the service ends; then it is written without that writer."""
_ATTEMPTS_AT_THE_END = 5

PENDING = Gauge("worldlake_soon_pending_rows", "Labels acknowledged with write=soon that are not in the lake yet")
DROPPED = Counter("worldlake_soon_dropped_rows", "Labels acknowledged with write=soon that were never written")

log = logging.getLogger("serve.soon")


class Soon:
    """The rows of one ingress that wait to be written. They do not survive a kill of this process."""

    def __init__(self, write: Callable[[Rows], Awaitable[object]], write_here: Callable[[Rows], object] | None) -> None:
        """`write` asks the writer of the service; `write_here` blocks, and does without it once the service ends."""
        self._write, self._write_here = write, write_here
        self._tasks: dict[asyncio.Task[None], Rows] = {}

    def add(self, rows: Rows) -> None:
        """Take on rows that are about to be acknowledged. Raises Problem where too many wait."""
        waiting = sum(map(len, self._tasks.values()))
        if waiting + len(rows) > _MOST:
            raise busy("too many labels wait to be written", 5)
        task = asyncio.create_task(self._persist(rows))
        self._tasks[task] = rows
        PENDING.inc(len(rows))
        task.add_done_callback(self._ended)

    async def drain(self) -> None:
        """Write what waits, because this process is about to end. What cannot be written is counted as lost."""
        if not self._tasks:
            return
        await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        left = list(self._tasks.items())
        for task, _ in left:
            task.cancel()
        rows = [row for _, of_task in left for row in of_task]
        # Rows that a cancelled call has written after all are known by their ids.
        if rows and not await self._written_here(rows):
            _drop(rows, "the service has ended")

    async def _written_here(self, rows: Rows) -> bool:
        for attempt in range(_ATTEMPTS_AT_THE_END if self._write_here else 0):
            assert self._write_here is not None
            try:
                await asyncio.to_thread(self._write_here, rows)
            except Exception as error:  # whatever keeps the lake from being written
                log.warning("labels are not written yet (attempt %d): %s", attempt + 1, error)
                await asyncio.sleep(1)
            else:
                return True
        return False

    async def _persist(self, rows: Rows) -> None:
        gives_up_at, delay = time.monotonic() + _PATIENCE_S, _FIRST_DELAY_S
        while True:
            try:
                await self._write(rows)
                return
            except Refused as refused:
                _drop(rows, str(refused))
                return
            except Exception as error:  # also of Ray: the writer is being started again
                if time.monotonic() + delay > gives_up_at:
                    _drop(rows, str(error))
                    return
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        PENDING.dec(len(self._tasks.pop(task)))


def _drop(rows: Rows, why: str) -> None:
    DROPPED.inc(len(rows))
    log.error("%d labels that were acknowledged with write=soon are lost: %s", len(rows), one_line(why))
