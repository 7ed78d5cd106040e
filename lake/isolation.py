"""Running a function where a hang or a crash inside a codec can be survived.

The process pools of the standard library cannot stop one call, and those that can share one pipe and its lock among
their processes: a process killed while it holds that lock stops all others for ever. Here each child has its own pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

# Once more, because a kill or an empty memory may have come from outside; not more often, because a file that does it
# twice does it every time.
ATTEMPTS = 2
# Address space of the child. It fails inside before the kernel starts to kill processes outside; a decoder of 8K video
# with all its reference frames stays under half of it.
MEMORY_BYTES = 4 << 30


# A child that starts imports what its first call needs, some of it for seconds on a busy machine: not the call's fault.
START_S = 60.0


class ChildLost(Exception):
    """The call did not come back on any attempt; the message says what became of it each time."""


class Isolated:
    """One child process that runs calls one at a time, and is replaced when it hangs or dies.

    State that the called functions keep in their modules lives on from call to call, until then. The child starts with
    the first call and ends with `close` or with this process, however that dies.
    """

    def __init__(self, timeout_s: float, memory_bytes: int = MEMORY_BYTES) -> None:
        """Allow `timeout_s` seconds of wall clock for an attempt, once the child is up, and `memory_bytes` of space."""
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self._closed = False

    def call(self, function: Callable[..., Result], *args: object) -> Result:
        """Return `function(*args)`, computed in the child; all of it must pickle.

        Raises what the function raises, at once, except MemoryError; raises ChildLost if two attempts hang, die or run
        out of memory, or if this was closed.
        """
        endings: list[str] = []
        while len(endings) < ATTEMPTS and not self._closed:
            is_new = self._child is None or not self._child.process.is_alive()
            if self._child is None or is_new:
                self._child = _Child(self._memory_bytes)
            try:
                if is_new:
                    self._child.call(_import, (function,), START_S)
                result: Result = self._child.call(function, args, self._timeout_s)
            except MemoryError:
                self._child.end()
                endings.append("ran out of memory")
            except _Ended as ended:
                endings.append(str(ended))
            else:
                return result
        raise ChildLost(f"the process was lost {len(endings)} times: {', then '.join(endings)}")

    def close(self) -> None:
        """Stop the child, without waiting for a call that is still running."""
        self._closed = True
        if self._child is not None:
            self._child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Ended(Exception):
    """How a child ended in the middle of a call."""


class _Child:
    def __init__(self, memory_bytes: int) -> None:
        # Spawned: a fork of a process with threads (Ray, CUDA, gRPC) may deadlock.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, memory_bytes), daemon=True)
        self.process.start()
        # From here on only the child holds its end, so that its death is the end of the stream.
        theirs.close()

    def call(self, function: Callable[..., Any], args: tuple[object, ...], timeout_s: float) -> Any:
        hung = threading.Event()
        # Sending and receiving block as well while the child is stopped, so that a limit on waiting would not do.

        def give_up() -> None:
            hung.set()
            self.process.kill()

        alarm = threading.Timer(timeout_s, give_up)
        alarm.start()
        try:
            self._connection.send((function, args))
            succeeded, result = self._connection.recv()
        except (EOFError, OSError):
            self.end()
            code = self.process.exitcode
            raise _Ended(
                f"killed after hanging for {timeout_s:g} s" if hung.is_set() else _describe_exit(code)
            ) from None
        finally:
            alarm.cancel()
        if not succeeded:
            raise result
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def limit_memory(kind: int, size: int) -> None:
    """Let this process take so many bytes of a kind (`resource.RLIMIT_...`), or fewer where fewer are left to it."""
    _, most = resource.getrlimit(kind)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(kind, (size, size))


def _import(function: Callable[..., Any]) -> None:
    """Nothing: to be handed a function is to import its module."""


def _describe_exit(code: int | None) -> str:
    return f"died of {signal.Signals(-code).name}" if code and code < 0 else f"exited with code {code}"


def _serve(connection: Connection, memory_bytes: int) -> None:
    """What the child does: calls, one at a time, until its parent closes the pipe."""
    # Ctrl-C reaches every process of a terminal; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory(resource.RLIMIT_AS, memory_bytes)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        connection.send_bytes(_outcome(function, args))


def _outcome(function: Callable[..., Any], args: tuple[object, ...]) -> bytes:
    try:
        return pickle.dumps((True, function(*args)))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            pickled = pickle.dumps((False, error))
            pickle.loads(pickled)  # noqa: S301 - our own bytes; some errors pickle and cannot be read back
        except Exception:
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return pickled


def _die_with_parent() -> None:
    """End this process in the middle of a call, too, when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
