"""Running a function where a hang or a crash inside a codec can be survived."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as CallTimeout
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

from pebble import ProcessExpired, ProcessPool

Result = TypeVar("Result")

# Once more, because a kill or an empty memory may have come from outside; not more often, because a file that does it
# twice does it every time.
ATTEMPTS = 2
# Address space of the child. It fails inside before the kernel starts to kill processes outside; a decoder of 8K video
# with all its reference frames stays under half of it.
MEMORY_BYTES = 4 << 30


class ChildLost(Exception):
    """The call did not come back on any attempt; the message says what became of it each time."""


class Isolated:
    """One child process that runs calls one at a time, and is replaced when it hangs or dies.

    State that the called functions keep in their modules lives on from call to call, until then.
    """

    def __init__(self, timeout_s: float, memory_bytes: int = MEMORY_BYTES) -> None:
        """Allow `timeout_s` seconds of wall clock for an attempt, and `memory_bytes` of address space."""
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._pool = self._new_pool()

    def call(self, function: Callable[..., Result], *args: object) -> Result:
        """Return `function(*args)`, computed in the child; all of it must pickle.

        Raises what the function raises, at once, except MemoryError; raises ChildLost if two attempts hang, die or run
        out of memory.
        """
        endings: list[str] = []
        while len(endings) < ATTEMPTS:
            if not self._pool.active:
                # A child that was killed between two tasks breaks the whole pool.
                self.close()
                self._pool = self._new_pool()
            try:
                result: Result = self._pool.schedule(function, args=args, timeout=self._timeout_s).result()
            except CallTimeout:
                endings.append(f"killed after hanging for {self._timeout_s:g} s")
            except ProcessExpired as error:
                endings.append(_describe_exit(error.exitcode))
            except BrokenProcessPool:
                endings.append("killed before it began")
            except MemoryError:
                endings.append("ran out of memory")
            else:
                return result
        raise ChildLost(f"the decode process was lost {ATTEMPTS} times: {', then '.join(endings)}")

    def _new_pool(self) -> ProcessPool:
        # Spawned: a fork of a process with threads (Ray, CUDA, gRPC) may deadlock.
        return ProcessPool(
            max_workers=1,
            context=multiprocessing.get_context("spawn"),
            initializer=_start_child,
            initargs=(self._memory_bytes,),
        )

    def close(self) -> None:
        """Stop the child, without waiting for a call that is still running."""
        self._pool.stop()
        self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _describe_exit(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _start_child(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this process when its parent is gone: a parent that was killed could not have ended it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
